"""Our report and the peers' as one Markdown table, and the cells in which a peer is faster.

    python merge.py ours.json peers.json > table.md
"""

import json
import sys

KEY = ("structure", "storage", "out", "in", "params", "batch", "threads", "regime")


def key(row):
    return tuple(row[field] for field in KEY)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    ours, peers = (json.load(open(path)) for path in sys.argv[1:])
    engines = sorted({row["engine"] for row in peers})
    times = {(key(row), row["engine"]): row["seconds"] for row in peers}
    header = ["structure", "shape", "ratio", "batch", "threads", "regime", "structmat, us"]
    header += [f"{engine}, us" for engine in engines] + ["best peer / ours"]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" + "---:|" * (len(header) - 1))
    slower = []
    for row in ours:
        found = {engine: times[key(row), engine] for engine in engines if (key(row), engine) in times}
        if not found:
            continue
        ratio = min(found.values()) / row["seconds"]
        cells = [row["structure"], f"{row['out']} x {row['in']}", f"{row['ratio']:.4f}", row["batch"], row["threads"], row["regime"]]
        cells += [f"{1e6 * row['seconds']:.1f}"]
        cells += [f"{1e6 * found[engine]:.1f}" if engine in found else "-" for engine in engines]
        print("| " + " | ".join(map(str, cells)) + f" | {ratio:.2f} |")
        if ratio < 1:
            slower.append(f"- {row['structure']} {row['out']} x {row['in']}, ratio {row['ratio']:.4f}, batch {row['batch']}, "
                          f"{row['threads']} thread(s), {row['regime']}: {ratio:.2f}")
    print("\nSlower than the best peer (its time over ours):\n")
    print("\n".join(slower) or "- none")


if __name__ == "__main__":
    main()

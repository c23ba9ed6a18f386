"""The cells of an `efficiency --json` report in PyTorch: the same members (sizes of factors), batches and threads.

    python products.py --cells ours.json --json peers.json

Each product takes the best of several formulations: eager, and compiled where `torch.compile` works. Prints and writes rows with
the fields of the report, plus `engine`.
"""

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F


def factor(shape, generator):
    return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5


def dense(cell, make):
    w = make(cell["out"], cell["in"])
    return [w], {
        "linear": lambda p, x: F.linear(x, p[0]),
        # A transposed weight is better for some shapes.
        "matmul": lambda p, x: (p[0] @ x.T).T,
    }


def low_rank(cell, make):
    f = cell["factors"]
    u, v = make(*f["u"][1:]), make(*f["v"][1:])
    return [u, v], {
        "linear": lambda p, x: F.linear(F.linear(x, p[1]), p[0]),
        "matmul": lambda p, x: (p[0] @ (p[1] @ x.T)).T,
    }


def padded(x, features):
    return F.pad(x, (0, features - x.shape[1])) if features > x.shape[1] else x


def block_diagonal(cell, make):
    blocks, rows, cols = cell["factors"]["blocks"]
    out = cell["out"]

    def view(x):
        return padded(x, blocks * cols).view(-1, blocks, cols)

    def right(w, x):
        return torch.bmm(view(x).transpose(0, 1), w[0].transpose(1, 2)).transpose(0, 1).reshape(x.shape[0], -1)[:, :out]

    def left(w, x):
        return torch.bmm(w[0], view(x).permute(1, 2, 0)).permute(2, 0, 1).reshape(x.shape[0], -1)[:, :out]

    def einsum(w, x):
        return torch.einsum("bki,kji->bkj", view(x), w[0]).reshape(x.shape[0], -1)[:, :out]

    return [make(blocks, rows, cols)], {"bmm": right, "bmm, weights left": left, "einsum": einsum}


def monarch(cell, make):
    (j, s, kt), (k, jt, p) = cell["factors"]["u"], cell["factors"]["v"]
    t, out = kt // k, cell["out"]

    def right(w, x):
        batch = x.shape[0]
        z = torch.bmm(padded(x, k * p).view(batch, k, p).transpose(0, 1), w[1].transpose(1, 2))
        z = z.view(k, batch, j, t).permute(2, 1, 0, 3).reshape(j, batch, kt)
        return torch.bmm(z, w[0].transpose(1, 2)).permute(1, 2, 0).reshape(batch, j * s)[:, :out]

    def left(w, x):
        batch = x.shape[0]
        z = torch.bmm(w[1], padded(x, k * p).view(batch, k, p).permute(1, 2, 0))
        z = z.view(k, j, t, batch).transpose(0, 1).reshape(j, kt, batch)
        return torch.bmm(w[0], z).permute(2, 1, 0).reshape(batch, j * s)[:, :out]

    return [make(j, s, kt), make(k, jt, p)], {"bmm": right, "bmm, weights left": left}


def blast(cell, make):
    j, k, r = cell["factors"]["s"]
    s, p = -(-cell["out"] // j), -(-cell["in"] // k)

    def inner(w, x):
        return torch.bmm(padded(x, k * p).view(-1, k, p).transpose(0, 1), w[2].transpose(1, 2))

    def outer(w, z):
        return torch.bmm(z, w[0].transpose(1, 2)).transpose(0, 1).reshape(z.shape[1], -1)[:, : cell["out"]]

    return [make(j, s, r), make(j, k, r), make(k, r, p)], {
        "bmm, sum": lambda w, x: outer(w, (inner(w, x).unsqueeze(0) * w[1].unsqueeze(2)).sum(1)),
        "bmm, einsum": lambda w, x: outer(w, torch.einsum("kbr,jkr->jbr", inner(w, x), w[1])),
    }


def circulant(cell, make):
    n = max(cell["out"], cell["in"])
    spectrum = torch.fft.rfft(make(n))
    return [spectrum], {
        "rfft": lambda p, x: torch.fft.irfft(p[0] * torch.fft.rfft(x, n=n), n=n)[:, : cell["out"]],
    }


def block_circulant(cell, make):
    blocks, _, p = cell["factors"]["c"]
    rows, cols = -(-cell["out"] // p), -(-cell["in"] // p)
    assert rows * cols * p == cell["params"], "the grid of blocks"
    c = make(rows, cols, p)
    # One complex rows x cols matrix per frequency.
    spectrum = torch.fft.rfft(c).permute(2, 1, 0).contiguous()
    index = (torch.arange(p)[:, None] - torch.arange(p)[None, :]) % p
    expanded = c[:, :, index].permute(0, 2, 1, 3).reshape(rows * p, cols * p)[: cell["out"], : cell["in"]].contiguous()

    def rfft(w, x):
        batch = x.shape[0]
        x = F.pad(x, (0, cols * p - x.shape[1])).view(batch, cols, p)
        y = torch.bmm(torch.fft.rfft(x).permute(2, 0, 1), w[0])
        return torch.fft.irfft(y.permute(1, 2, 0), n=p).reshape(batch, -1)[:, : cell["out"]]

    return [spectrum, expanded], {"rfft": rfft, "expanded": lambda w, x: F.linear(x, w[1])}


def cur(cell, make):
    f = cell["factors"]
    c, r = make(*f["c"][1:]), make(*f["r"][1:])
    u = make(*f["u"][1:]) if "u" in f else None
    if u is None:
        return [c, r], {"linear": lambda p, x: F.linear(F.linear(x, p[1]), p[0])}
    return [c, u, r], {
        "linear": lambda p, x: F.linear(F.linear(F.linear(x, p[2]), p[1]), p[0]),
        "matmul": lambda p, x: (p[0] @ (p[1] @ (p[2] @ x.T))).T,
    }


def csr(rows, cols, count, make):
    generator = torch.Generator().manual_seed(2)
    flat = torch.randperm(rows * cols, generator=generator)[:count].sort().values
    index = torch.stack([flat // cols, flat % cols])
    return torch.sparse_coo_tensor(index, make(count), (rows, cols)).coalesce().to_sparse_csr()


def sparse(cell, make):
    s = csr(cell["out"], cell["in"], cell["params"], make)
    return [s], {"csr": lambda p, x: (p[0] @ x.T).T}


def sparse_low_rank(cell, make):
    f = cell["factors"]
    u, v = make(*f["low_rank.u"][1:]), make(*f["low_rank.v"][1:])
    s = csr(cell["out"], cell["in"], f["sparse.values"][0] * f["sparse.values"][1] * f["sparse.values"][2], make)
    return [u, v, s], {
        "csr + linear": lambda p, x: F.linear(F.linear(x, p[1]), p[0]) + (p[2] @ x.T).T,
        "csr + matmul": lambda p, x: (torch.addmm(p[2] @ x.T, p[0], p[1] @ x.T)).T,
    }


def kronecker(cell, make):
    (terms, m1, n1), (_, m2, n2) = cell["factors"]["a"], cell["factors"]["b"]
    out = cell["out"]
    a, b = make(terms, m1, n1), make(terms, m2, n2)
    # Two plain products: the terms lie side by side in the weights of the first and are summed by the second.
    a_rows, a_cols = a.reshape(terms * m1, n1), a.permute(1, 0, 2).reshape(m1, terms * n1).contiguous()
    b_rows, b_cols = b.reshape(terms * m2, n2), b.permute(1, 0, 2).reshape(m2, terms * n2).contiguous()

    def b_first(w, x):
        batch = x.shape[0]
        z = F.linear(padded(x, n1 * n2).reshape(batch * n1, n2), w[2]).view(batch, n1, terms, m2)
        z = F.linear(z.permute(0, 3, 2, 1).reshape(batch * m2, terms * n1), w[1])
        return z.view(batch, m2, m1).transpose(1, 2).reshape(batch, m1 * m2)[:, :out]

    def a_first(w, x):
        batch = x.shape[0]
        x = padded(x, n1 * n2).view(batch, n1, n2).transpose(1, 2)
        z = F.linear(x.reshape(batch * n2, n1), w[0]).view(batch, n2, terms, m1)
        z = F.linear(z.permute(0, 3, 2, 1).reshape(batch * m1, terms * n2), w[3])
        return z.view(batch, m1 * m2)[:, :out]

    # One small product per term, and a sum: faster where few rows meet many terms.
    def grid(x):
        return padded(x, n1 * n2).view(-1, 1, n1, n2)

    def a_terms(w, x):
        return torch.matmul(torch.matmul(w[4], grid(x)), w[5].transpose(1, 2)).sum(1).reshape(x.shape[0], -1)[:, :out]

    def b_terms(w, x):
        return torch.matmul(w[4], torch.matmul(grid(x), w[5].transpose(1, 2))).sum(1).reshape(x.shape[0], -1)[:, :out]

    formulations = {"b first": b_first, "a first": a_first, "b first, by terms": b_terms, "a first, by terms": a_terms}
    return [a_rows, a_cols, b_rows, b_cols, a, b], formulations


FAMILIES = {
    f.__name__: f
    for f in [dense, low_rank, block_diagonal, monarch, blast, circulant, block_circulant, cur, sparse, sparse_low_rank, kronecker]
}


def copies_of(weights, count):
    return [weights] + [[w.clone() for w in weights] for _ in range(count - 1)]


def last_level_cache():
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = sorted(folder.glob("index*/size"))
    return min(int(sizes[-1].read_text().strip().rstrip("K")) << 10, 256 << 20) if sizes else 32 << 20


def seconds_of(run, copies, x, rounds, slice_seconds):
    """Sorted times of one product, cycling through the copies."""
    for weights in copies[:2]:
        run(weights, x)
    start = time.perf_counter()
    run(copies[0], x)
    once = max(time.perf_counter() - start, 1e-7)
    calls = max(1, min(100_000, int(slice_seconds / once)))
    calls = -(-calls // len(copies)) * len(copies)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for k in range(calls):
            run(copies[k % len(copies)], x)
        times.append((time.perf_counter() - start) / calls)
    return sorted(times)


def bytes_of(weights):
    total = 0
    for w in weights:
        if w.layout == torch.sparse_csr:
            total += sum(t.numel() * t.element_size() for t in (w.values(), w.col_indices(), w.crow_indices()))
        else:
            total += w.numel() * w.element_size()
    return total


def check(name, formulations, weights, x):
    """All formulations agree: a wrong one would be timed for nothing."""
    answers = {key: run(weights, x) for key, run in formulations.items()}
    first = next(iter(answers.values()))
    for key, answer in answers.items():
        error = ((answer - first).norm() / first.norm()).item()
        if answer.shape != first.shape or not error < 1e-4:
            sys.exit(f"{name}: `{key}` gives another answer, off by {error:.1e}")


def author_layer(option, path):
    """A user's own module with `layer(cell) -> callable(x)`, or None with a message."""
    if path is None:
        print(f"{option}: not given, the authors' layer is skipped", file=sys.stderr)
        return None
    if not path.exists():
        print(f"{option} {path}: no such file, the authors' layer is skipped", file=sys.stderr)
        return None
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    if not hasattr(module, "layer"):
        print(f"{option} {path}: has no function `layer(cell)`, the authors' layer is skipped", file=sys.stderr)
        return None
    return module.layer


def row(cell, engine, how, times):
    median = times[len(times) // 2]
    fields = ["structure", "storage", "out", "in", "ratio", "params", "bytes", "flops", "batch", "threads", "regime"]
    result = {field: cell[field] for field in fields}
    limit_seconds = cell["limit_seconds"]
    result.update(
        seconds=median,
        baseline=None,
        baseline_seconds=None,
        speedup=None,
        limit=cell["limit"],
        limit_seconds=limit_seconds,
        efficiency=limit_seconds / median,
        engine=engine,
        how=how,
    )
    return result


def measure(cell, args, layers):
    family = "dense" if cell["structure"].startswith("dense") else cell["structure"]
    generator = torch.Generator().manual_seed(1)
    weights, formulations = FAMILIES[family](cell, lambda *shape: factor(shape, generator))
    x = torch.randn(cell["batch"], cell["in"], generator=generator)
    check(cell["structure"], formulations, weights, x)
    cold = cell["regime"] == "cold"
    runs = [("torch eager", how, run, weights) for how, run in formulations.items()]
    if not args.no_compile:
        for how, run in formulations.items():
            try:
                torch.compiler.reset()
                # The program is compiled before it is timed; one that does not compile is left out.
                compiled = torch.compile(run, dynamic=False)
                compiled(weights, x)
                runs.append(("torch compile", how, compiled, weights))
            except Exception as error:
                print(f"{cell['structure']}, {how}: not compiled: {type(error).__name__}", file=sys.stderr)
    for engine, layer in layers.items():
        if layer is not None and family in ("monarch", "blast"):
            module = layer(cell)
            if module is not None:
                runs.append((engine, "authors' layer", lambda _, x, module=module: module(x), []))
    best = {}
    for engine, how, run, weights in runs:
        count = max(2, -(-4 * last_level_cache() // max(bytes_of(weights), 1))) if cold and weights else 1
        times = seconds_of(run, copies_of(weights, count), x, args.rounds, args.slice)
        if engine not in best or times[len(times) // 2] < best[engine][1][len(times) // 2]:
            best[engine] = (how, times)
    return [row(cell, engine, how, times) for engine, (how, times) in best.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True, help="report of `efficiency --json`")
    parser.add_argument("--json", type=Path, help="file to write the rows to; else they are printed")
    parser.add_argument("--structures", help="comma list; all that there are formulations for when not given")
    parser.add_argument("--no-compile", action="store_true", help="eager only")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--slice", type=float, default=0.01, help="seconds of a round")
    parser.add_argument("--fly", type=Path, help="Python file with `layer(cell)` around the Monarch authors' layer")
    parser.add_argument("--blast", type=Path, help="Python file with `layer(cell)` around the BLAST authors' layer")
    args = parser.parse_args()
    layers = {"fly": author_layer("--fly", args.fly), "blast": author_layer("--blast", args.blast)}
    wanted = args.structures.split(",") if args.structures else list(FAMILIES)
    cells = json.loads(args.cells.read_text())
    rows = []
    with torch.inference_mode():
        for cell in cells:
            family = "dense" if cell["structure"] == "dense (structmat)" else cell["structure"]
            if family not in wanted or cell["storage"] != "f32" or cell["regime"] == "call_overhead":
                continue
            torch.set_num_threads(cell["threads"])
            found = measure(cell, args, layers)
            rows += found
            times = ", ".join(f"{r['engine']} ({r['how']}) {1e6 * r['seconds']:.1f} us" for r in found)
            where = f"{cell['out']}x{cell['in']} batch {cell['batch']}, {cell['threads']} thread(s), {cell['regime']}"
            print(f"{cell['structure']} {cell['ratio']:.4f}, {where}: {times}", file=sys.stderr)
    dense_best = {}
    for r in rows:
        if r["structure"].startswith("dense"):
            key = tuple(r[k] for k in ("out", "in", "batch", "threads", "regime"))
            if key not in dense_best or r["seconds"] < dense_best[key]["seconds"]:
                dense_best[key] = r
    for r in rows:
        best = dense_best.get(tuple(r[k] for k in ("out", "in", "batch", "threads", "regime")))
        if best:
            r.update(baseline=f"dense ({best['engine']})", baseline_seconds=best["seconds"], speedup=best["seconds"] / r["seconds"])
    text = json.dumps(rows, indent=2) + "\n"
    if args.json:
        args.json.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()

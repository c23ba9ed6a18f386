//! Diagrams: the maps that span an equivariant space, by their entries.

/// A map $E$ between tensors, drawn as a diagram: its vertices are the axes of the output (`0 .. out_axes`) and then those of the input.
///
/// $E_{IJ}$ is a product over blocks of vertices: 1 where the indices of all vertices of the block are equal, else 0. For the symplectic group a block
/// of two axes on the same side counts $J_{ab}$ instead (first vertex first). The indices of free vertices count the sign of the permutation that
/// they are, else 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EquivariantDiagram {
    pub(super) n: usize,
    pub(super) axes: (usize, usize),
    pub(super) blocks: Vec<Vec<usize>>,
    pub(super) free: Vec<usize>,
    pub(super) symplectic: bool,
}

impl EquivariantDiagram {
    /// Size of each axis.
    pub fn n(&self) -> usize {
        self.n
    }

    /// `(out_axes, in_axes)`.
    pub fn axes(&self) -> (usize, usize) {
        self.axes
    }

    /// The blocks of vertices, each in ascending order.
    pub fn blocks(&self) -> &[Vec<usize>] {
        &self.blocks
    }

    /// The free vertices, in ascending order: none, or `n`.
    pub fn free(&self) -> &[usize] {
        &self.free
    }

    /// Whether a block counts $J$ instead of equality.
    pub(super) fn is_skew(&self, block: &[usize]) -> bool {
        self.symplectic && block.iter().all(|v| (*v < self.axes.0) == (block[0] < self.axes.0))
    }

    /// Calls `entry` with row, column and value of each entry that is not zero.
    pub fn for_each(&self, entry: &mut dyn FnMut(usize, usize, f64)) {
        let mut indices = vec![0; self.axes.0 + self.axes.1];
        let signs: Vec<_> = match self.free.is_empty() {
            true => vec![(Vec::new(), 1.0)],
            false => arrangements(&(0..self.n).collect::<Vec<_>>()),
        };
        for (values, sign) in signs {
            self.free.iter().zip(values).for_each(|(v, value)| indices[*v] = value);
            self.assign(0, sign, &mut indices, entry);
        }
    }

    /// All indices of the blocks from `first` on.
    fn assign(
        &self,
        first: usize,
        sign: f64,
        indices: &mut [usize],
        entry: &mut dyn FnMut(usize, usize, f64),
    ) {
        let Some(block) = self.blocks.get(first) else {
            let number = |axes: &[usize]| axes.iter().fold(0, |number, index| number * self.n + index);
            let (rows, cols) = indices.split_at(self.axes.0);
            return entry(number(rows), number(cols), sign);
        };
        for value in 0..self.n {
            block.iter().for_each(|v| indices[*v] = value);
            let mut sign = sign;
            if self.is_skew(block) {
                indices[block[1]] = value ^ 1;
                sign = if value % 2 == 0 { sign } else { -sign };
            }
            self.assign(first + 1, sign, indices, entry);
        }
    }

    /// $\langle E, E' \rangle$ for two diagrams of the same group and axes, from the components of their union: $n$ for each without free vertices,
    /// with a sign for the symplectic group; of $SO(n)$, $n!$ times the sign with which paths join the free vertices, 0 where they do not. 0 for
    /// diagrams between other tensors or of other groups.
    pub fn inner(&self, other: &Self) -> f64 {
        if (self.n, self.axes) != (other.n, other.axes) || self.symplectic != other.symplectic {
            return 0.0;
        }
        let size = self.n as f64;
        if !self.symplectic && self.free.is_empty() && other.free.is_empty() {
            return size.powi(components(self, other) as i32);
        }
        let (mine, theirs) = (self.partners(), other.partners());
        let mut seen = vec![false; mine.len()];
        // From a free vertex of the one along the other and back, to a free vertex of the other.
        let mut image = Vec::with_capacity(self.free.len());
        for &start in &self.free {
            let mut v = start;
            loop {
                seen[v] = true;
                let Some(u) = theirs[v] else { break };
                seen[u] = true;
                let Some(next) = mine[u] else { return 0.0 };
                v = next;
            }
            match other.free.iter().position(|free| *free == v) {
                Some(place) => image.push(place),
                None => return 0.0,
            }
        }
        if image.len() != other.free.len() {
            return 0.0;
        }
        let mut product = sign(&image) * (1..=image.len()).map(|k| k as f64).product::<f64>();
        // What is left are loops: the trace of a product of J, its transpose and the identity.
        for start in 0..seen.len() {
            if seen[start] {
                continue;
            }
            let (mut v, mut skew, mut reversed) = (start, 0, 0);
            loop {
                for (diagram, partners) in [(self, &mine), (other, &theirs)] {
                    seen[v] = true;
                    let Some(u) = partners[v] else { return 0.0 };
                    if diagram.is_skew(&[v, u]) {
                        skew += 1;
                        reversed += usize::from(u < v);
                    }
                    v = u;
                }
                if v == start {
                    break;
                }
            }
            product *= if (skew / 2 + reversed) % 2 == 0 { size } else { -size };
        }
        product
    }

    /// What each vertex is matched with.
    fn partners(&self) -> Vec<Option<usize>> {
        let mut partners = vec![None; self.axes.0 + self.axes.1];
        for block in &self.blocks {
            if let [a, b] = block[..] {
                (partners[a], partners[b]) = (Some(b), Some(a));
            }
        }
        partners
    }
}

/// Connected components of the union of two partitions.
fn components(a: &EquivariantDiagram, b: &EquivariantDiagram) -> usize {
    let mut label: Vec<usize> = (0..a.axes.0 + a.axes.1).collect();
    for block in a.blocks.iter().chain(&b.blocks) {
        for pair in block.windows(2) {
            let (keep, gone) = (label[pair[0]], label[pair[1]]);
            label.iter_mut().filter(|l| **l == gone).for_each(|l| *l = keep);
        }
    }
    label.iter().enumerate().filter(|(v, l)| label.iter().position(|other| other == *l) == Some(*v)).count()
}

/// All pairings of vertices, in lexicographic order; none of an odd number.
pub(super) fn matchings(vertices: &[usize]) -> Vec<Vec<Vec<usize>>> {
    let [first, rest @ ..] = vertices else { return vec![Vec::new()] };
    let mut all = Vec::new();
    for (k, partner) in rest.iter().enumerate() {
        let others: Vec<usize> = rest[..k].iter().chain(&rest[k + 1..]).copied().collect();
        for pairs in matchings(&others) {
            all.push(std::iter::once(vec![*first, *partner]).chain(pairs).collect());
        }
    }
    all
}

/// All partitions of `0..len` into at most `most` blocks, by the block of each vertex in lexicographic order.
pub(super) fn partitions(len: usize, most: usize) -> Vec<Vec<Vec<usize>>> {
    let mut all = vec![Vec::new()];
    for v in 0..len {
        let mut longer = Vec::new();
        for blocks in all {
            for k in 0..most.min(blocks.len() + 1) {
                let mut blocks: Vec<Vec<usize>> = blocks.clone();
                match blocks.get_mut(k) {
                    Some(block) => block.push(v),
                    None => blocks.push(vec![v]),
                }
                longer.push(blocks);
            }
        }
        all = longer;
    }
    all
}

/// The subsets of `0..len` with `size` members, in lexicographic order.
pub(super) fn subsets(len: usize, size: usize) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = if size <= len { vec![Vec::new()] } else { Vec::new() };
    for k in 0..size {
        let longer = |set: Vec<usize>| {
            let first = set.last().map_or(0, |last| last + 1);
            // As many larger ones are left as are still missing.
            (first..=len + k - size).map(move |next| [&set[..], &[next]].concat())
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all
}

/// All orders of `values` (ascending), each with the sign of its permutation.
pub(super) fn arrangements(values: &[usize]) -> Vec<(Vec<usize>, f64)> {
    let mut all = vec![(Vec::new(), 1.0)];
    for _ in values {
        let longer = |(chosen, sign): (Vec<usize>, f64)| {
            let rest: Vec<usize> = values.iter().copied().filter(|v| !chosen.contains(v)).collect();
            rest.into_iter().enumerate().map(move |(k, next)| {
                let mut chosen = chosen.clone();
                chosen.push(next);
                (chosen, if k % 2 == 0 { sign } else { -sign })
            })
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all
}

/// The sign of a permutation.
pub(super) fn sign(order: &[usize]) -> f64 {
    let inversions: usize =
        (0..order.len()).map(|i| order[i + 1..].iter().filter(|v| **v < order[i]).count()).sum();
    if inversions.is_multiple_of(2) { 1.0 } else { -1.0 }
}

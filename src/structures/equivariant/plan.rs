//! How all diagrams are multiplied together: contract, mix and permute, copy.
//!
//! A diagram factors through a small tensor with one axis for each block that has vertices on both sides. Its lower half contracts the input to
//! that tensor, a permutation reorders the axes, and the upper half copies it to the output. Halves are shared: by the pairs of the lower side alone
//! the input is contracted once, and the small tensors are added up before they are copied, once for the pairs of the upper side.

use super::diagram::{EquivariantDiagram, arrangements, sign, subsets};
use crate::scalar::Scalar;

/// One half of diagrams: a sparse map between a tensor and the small one, each entry of the tensor used at most once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Half {
    /// For each axis of the small tensor, how far apart its indices lie in the tensor.
    cross: Vec<usize>,
    /// What is summed up, or copied to.
    sums: Vec<Sum>,
    /// For each set of values that the free vertices of the lower side may have, where their orders lie in the tensor, and whether negative. One
    /// set of one order without free vertices.
    sets: Vec<Vec<(usize, bool)>>,
    /// Entries of the small tensors of the halves before.
    pub(super) start: usize,
    /// Entries of the small tensor.
    pub(super) rows: usize,
}

/// A block of vertices on one side alone.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sum {
    /// All indices equal.
    Equal(usize),
    /// `J` between two indices.
    Skew(usize, usize),
}

/// A diagram.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Term {
    pub(super) top: usize,
    pub(super) bottom: usize,
    /// For each axis of the small tensor of the top how far apart its indices lie in that of the bottom, and the other way round; nothing where the
    /// axes have the same order.
    pub(super) turns: Option<(Vec<usize>, Vec<usize>)>,
}

/// All diagrams between two tensors.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) n: usize,
    pub(super) diagrams: Vec<EquivariantDiagram>,
    pub(super) tops: Vec<Half>,
    pub(super) bottoms: Vec<Half>,
    /// One for each diagram.
    pub(super) terms: Vec<Term>,
}

impl Plan {
    pub(super) fn new(n: usize, diagrams: Vec<EquivariantDiagram>) -> Self {
        let (mut tops, mut bottoms) = (Halves::default(), Halves::default());
        let mut terms = Vec::with_capacity(diagrams.len());
        for diagram in &diagrams {
            let (out, inp) = diagram.axes;
            let top = Side { n, diagram, first: 0, axes: out, is_top: true };
            let bottom = Side { first: out, axes: inp, is_top: false, ..top };
            let is_cross =
                |block: &&Vec<usize>| top.owns(block[0]) && block.last().is_some_and(|v| bottom.owns(*v));
            // Axes of the small tensors in the order of their first vertices.
            let on_top: Vec<&Vec<usize>> = diagram.blocks.iter().filter(is_cross).collect();
            let first_below =
                |block: &&Vec<usize>| block.iter().position(|v| bottom.owns(*v)).map(|k| block[k]);
            let mut below = on_top.clone();
            below.sort_by_key(first_below);
            let position = |of: &Vec<usize>, among: &[&Vec<usize>]| among.iter().position(|b| *b == of);
            let turn: Vec<usize> = on_top.iter().filter_map(|block| position(block, &below)).collect();
            let straight = turn.iter().enumerate().all(|(a, b)| a == *b);
            let back: Vec<usize> = below.iter().filter_map(|block| position(block, &on_top)).collect();
            let strides = |turn: &[usize]| turn.iter().map(|a| n.pow((turn.len() - 1 - a) as u32)).collect();
            terms.push(Term {
                top: tops.find(top.half(&on_top)),
                bottom: bottoms.find(bottom.half(&below)),
                turns: (!straight).then(|| (strides(&turn), strides(&back))),
            });
        }
        Self { n, diagrams, tops: tops.0, bottoms: bottoms.0, terms }
    }

    /// Entries of the small tensors of all `halves`.
    pub(super) fn rows(halves: &[Half]) -> usize {
        halves.last().map_or(0, |half| half.start + half.rows)
    }

    /// Entries of the largest.
    pub(super) fn most_rows(&self) -> usize {
        self.bottoms.iter().map(|half| half.rows).max().unwrap_or(0)
    }

    /// Reads of the input and writes of the output that one diagram alone takes, per channel.
    pub(super) fn accesses(&self, diagram: usize) -> Option<u64> {
        let term = self.terms.get(diagram)?;
        Some(self.bottoms[term.bottom].accesses(self.n) + self.tops[term.top].accesses(self.n))
    }

    /// Flops of a product with one vector of `channels.1` channels to `channels.0`: each half once, each diagram a product on its small tensor.
    pub(super) fn flops(&self, channels: (usize, usize)) -> u64 {
        let (outputs, inputs) = (channels.0 as u64, channels.1 as u64);
        let once = |halves: &[Half]| halves.iter().map(|half| half.accesses(self.n)).sum::<u64>();
        let rows: u64 = self.terms.iter().map(|term| self.bottoms[term.bottom].rows as u64).sum();
        once(&self.bottoms) * inputs + once(&self.tops) * outputs + 2 * rows * outputs * inputs
    }
}

/// Halves without repetition.
#[derive(Debug, Default)]
struct Halves(Vec<Half>);

impl Halves {
    /// The place of a half, new or not.
    fn find(&mut self, half: Half) -> usize {
        let start = Plan::rows(&self.0);
        let same =
            |known: &Half| known.cross == half.cross && known.sums == half.sums && known.sets == half.sets;
        self.0.iter().position(same).unwrap_or_else(|| {
            self.0.push(Half { start, ..half });
            self.0.len() - 1
        })
    }
}

/// The vertices `first .. first + axes` of a diagram.
#[derive(Clone, Copy)]
struct Side<'a> {
    n: usize,
    diagram: &'a EquivariantDiagram,
    first: usize,
    axes: usize,
    is_top: bool,
}

impl Side<'_> {
    fn owns(&self, v: usize) -> bool {
        (self.first..self.first + self.axes).contains(&v)
    }

    /// How far apart the indices of a vertex lie in the tensor; 0 on the other side.
    fn stride(&self, v: usize) -> usize {
        if self.owns(v) { self.n.pow((self.first + self.axes - 1 - v) as u32) } else { 0 }
    }

    fn half(&self, cross: &[&Vec<usize>]) -> Half {
        let along = |block: &[usize]| block.iter().map(|v| self.stride(*v)).sum();
        let inside = self.diagram.blocks.iter().filter(|block| block.iter().all(|v| self.owns(*v)));
        let sum = |block: &Vec<usize>| match self.diagram.is_skew(block) {
            true => Sum::Skew(self.stride(block[0]), self.stride(block[1])),
            false => Sum::Equal(along(block)),
        };
        let cross: Vec<usize> = cross.iter().map(|block| along(block)).collect();
        let sets = self.sets();
        let rows = sets.len() * self.n.pow(cross.len() as u32);
        Half { cross, sums: inside.map(sum).collect(), sets, start: 0, rows }
    }

    /// Where the orders of the values of free vertices lie. The values of the upper side are those that the lower side leaves.
    fn sets(&self) -> Vec<Vec<(usize, bool)>> {
        let free = &self.diagram.free;
        if free.is_empty() {
            return vec![vec![(0, false)]];
        }
        let own: Vec<usize> =
            free.iter().copied().filter(|v| self.owns(*v)).map(|v| self.stride(v)).collect();
        let below = if self.is_top { self.n - own.len() } else { own.len() };
        let orders = |lower: Vec<usize>| {
            let upper: Vec<usize> = (0..self.n).filter(|v| !lower.contains(v)).collect();
            // The sign of both sides in ascending order belongs to the upper side.
            let (values, outer) = match self.is_top {
                true => (&upper, sign(&[&upper[..], &lower[..]].concat())),
                false => (&lower, 1.0),
            };
            let place = |(order, sign): (Vec<usize>, f64)| {
                (order.iter().zip(&own).map(|(v, stride)| v * stride).sum(), sign * outer < 0.0)
            };
            arrangements(values).into_iter().map(place).collect()
        };
        subsets(self.n, below).into_iter().map(orders).collect()
    }
}

impl Half {
    /// Entries of the tensor that it reads or writes.
    fn accesses(&self, n: usize) -> u64 {
        let orders: u64 = self.sets.iter().map(|set| set.len() as u64).sum();
        orders * (n as u64).pow((self.cross.len() + self.sums.len()) as u32)
    }

    /// Calls `at` for each entry of the small tensor with each place of the tensor that belongs to it, and whether that counts negative.
    fn for_each(&self, n: usize, mut at: impl FnMut(usize, usize, bool)) {
        let mut row = 0;
        for set in &self.sets {
            walk(n, &self.cross, 0, &mut |place| {
                for (offset, negative) in set {
                    sum(n, &self.sums, place + offset, *negative, &mut |place, negative| {
                        at(row, place, negative)
                    });
                }
                row += 1;
            });
        }
    }

    /// Contracts `x` (tensor entries x channels) to `small` (entries x channels).
    pub(super) fn gather<T: Scalar>(&self, n: usize, channels: usize, x: &[T], small: &mut [T]) {
        small.fill(T::zero());
        self.for_each(n, |row, place, negative| {
            let to = &mut small[row * channels..][..channels];
            add(to, &x[place * channels..][..channels], negative);
        });
    }

    /// Adds `small` to all places of `y` that belong to its entries.
    pub(super) fn scatter<T: Scalar>(&self, n: usize, channels: usize, small: &[T], y: &mut [T]) {
        self.for_each(n, |row, place, negative| {
            let to = &mut y[place * channels..][..channels];
            add(to, &small[row * channels..][..channels], negative);
        });
    }
}

fn add<T: Scalar>(to: &mut [T], from: &[T], negative: bool) {
    match negative {
        true => to.iter_mut().zip(from).for_each(|(to, from)| *to -= *from),
        false => to.iter_mut().zip(from).for_each(|(to, from)| *to += *from),
    }
}

/// All places of a grid of `n` steps along each of `strides`, the last one fastest.
fn walk<F: FnMut(usize)>(n: usize, strides: &[usize], place: usize, at: &mut F) {
    match strides {
        [] => at(place),
        [stride, rest @ ..] => (0..n).for_each(|v| walk(n, rest, place + v * stride, at)),
    }
}

fn sum<F: FnMut(usize, bool)>(n: usize, sums: &[Sum], place: usize, negative: bool, at: &mut F) {
    match sums {
        [] => at(place, negative),
        [Sum::Equal(stride), rest @ ..] => {
            (0..n).for_each(|v| sum(n, rest, place + v * stride, negative, at));
        }
        [Sum::Skew(first, second), rest @ ..] => {
            (0..n).for_each(|v| {
                let place = place + v * first + (v ^ 1) * second;
                sum(n, rest, place, negative != (v % 2 == 1), at);
            });
        }
    }
}

/// `small` (entries x channels) with its axes in another order: entry after entry of the result, `strides` apart in `small`.
pub(super) fn turn<T: Scalar>(n: usize, channels: usize, strides: &[usize], small: &[T], to: &mut [T]) {
    // Sets of free values lie one after the other.
    let tensor = n.pow(strides.len() as u32) * channels;
    for (from, to) in small.chunks_exact(tensor).zip(to.chunks_exact_mut(tensor)) {
        let mut rows = to.chunks_exact_mut(channels);
        walk(n, strides, 0, &mut |row| {
            if let Some(to) = rows.next() {
                to.copy_from_slice(&from[row * channels..][..channels]);
            }
        });
    }
}

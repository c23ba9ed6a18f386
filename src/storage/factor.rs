//! A stack of dense matrices in one storage: what every structure is made of.

use super::{GROUP, Storage, quantize};
use crate::error::{Error, Result};
use crate::exec::Policy;
use crate::kernels::{
    self, AlignedVec, Lanes, Mix, PANEL, Packing, PanelMap, PanelProduct, RowScaling, Rows, RowsMut, SLACK,
    SparseProduct, WindowProduct,
};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use bytemuck::Pod;
use half::{bf16, f16};
use ndarray::{Array2, Array3, ArrayRef2};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// `blocks` dense matrices of `rows x cols`, row-major one after the other, in one [`Storage`].
///
/// Structures are written on its few products, so each structure has each storage. Clones share their numbers, and so do clones of the matrices
/// made of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    blocks: usize,
    rows: usize,
    cols: usize,
    data: Arc<Data>,
    /// How the numbers lie; row after row where there is none.
    packing: Option<Packing>,
}

/// The numbers of a [`Factor`]. Integer codes come with scales of `blocks * rows x ceil(cols / GROUP)`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Data {
    F64(AlignedVec<f64>),
    F32(AlignedVec<f32>),
    Bf16(AlignedVec<bf16>),
    F16(AlignedVec<f16>),
    Int8 { codes: AlignedVec<i8>, scales: AlignedVec<bf16> },
    Int4 { codes: AlignedVec<u8>, scales: AlignedVec<bf16> },
}

/// Where the numbers of a factor lie.
#[derive(Clone, Copy)]
struct Layout {
    packing: Option<Packing>,
    rows: usize,
    cols: usize,
    /// Two numbers share a byte.
    paired: bool,
}

impl Layout {
    /// Numbers from one row to the next, where rows lie one after the other.
    fn stride(&self) -> usize {
        if self.paired { self.cols.next_multiple_of(2) } else { self.cols }
    }

    #[inline]
    fn index(&self, row: usize, col: usize) -> usize {
        self.packing.map_or(row * self.stride() + col, |packing| packing.index(row, col))
    }

    /// How many numbers of a row, from the one at `(row, col)` on, lie at equal distances, and that distance.
    #[inline]
    fn run(&self, row: usize, col: usize) -> (usize, usize) {
        self.packing.map_or((self.cols - col, 1), |packing| packing.run(row, col))
    }

    #[inline]
    fn scale_index(&self, row: usize, col: usize) -> usize {
        let rows = row * self.cols.div_ceil(GROUP) + col / GROUP;
        self.packing.map_or(rows, |packing| packing.scale_index(row, col))
    }

    /// Numbers, with what may be read beyond the last one.
    fn len(&self) -> usize {
        self.packing.map_or(self.rows * self.stride(), |packing| packing.len() + SLACK)
    }

    /// Scales, likewise.
    fn scales_len(&self) -> usize {
        self.packing.map_or(self.rows * self.cols.div_ceil(GROUP), |packing| packing.scales_len() + SLACK)
    }
}

/// Runs `$body` with `$source` bound to the concrete kernel source of the data.
macro_rules! with_source {
    ($factor:expr, $source:ident => $body:expr) => {{
        let (rows, cols) = ($factor.blocks * $factor.rows, $factor.cols);
        macro_rules! plain {
            ($name:ident, $v:expr) => {{
                let $source = match $factor.packing {
                    None => kernels::source::$name::new($v, rows, cols),
                    Some(_) => kernels::source::$name::packed($v, rows, cols),
                };
                $body
            }};
        }
        macro_rules! grouped {
            ($name:ident, $codes:expr, $scales:expr) => {{
                let $source = match $factor.packing {
                    None => kernels::source::$name::new($codes, $scales, rows, cols),
                    Some(_) => kernels::source::$name::packed($codes, $scales, rows, cols),
                };
                $body
            }};
        }
        match &*$factor.data {
            Data::F64(v) => plain!(F64, v),
            Data::F32(v) => plain!(F32, v),
            Data::Bf16(v) => plain!(Bf16, v),
            Data::F16(v) => plain!(F16, v),
            Data::Int8 { codes, scales } => grouped!(Int8, codes, scales),
            Data::Int4 { codes, scales } => grouped!(Int4, codes, scales),
        }
    }};
}

/// The rows that `fill` fills in, each number rounded.
fn rounded<N: Pod>(
    (rows, cols): (usize, usize),
    fill: &mut dyn FnMut(usize, &mut [f64]),
    round: impl Fn(f64) -> N,
) -> AlignedVec<N> {
    let (mut numbers, mut row) = (AlignedVec::zeroed(rows * cols), vec![0.0; cols]);
    for (i, out) in numbers.chunks_exact_mut(cols.max(1)).enumerate() {
        fill(i, &mut row);
        out.iter_mut().zip(&row).for_each(|(out, v)| *out = round(*v));
    }
    numbers
}

/// Numbers that lie one way laid out another way, each converted.
fn moved<F: Copy, E: Pod>(
    numbers: &[F],
    from: Layout,
    target: Layout,
    convert: impl Fn(F) -> E,
) -> AlignedVec<E> {
    let mut to = AlignedVec::zeroed(target.len());
    // Tiles of both layouts stay in the first-level cache.
    let (tiles, cols) = (from.rows.div_ceil(PANEL), from.cols);
    for (tile, first) in (0..tiles).flat_map(|tile| (0..cols).step_by(2 * PANEL).map(move |col| (tile, col)))
    {
        for row in tile * PANEL..from.rows.min((tile + 1) * PANEL) {
            let (mut col, end) = (first, cols.min(first + 2 * PANEL));
            while col < end {
                let ((n, step), (m, stride)) = (from.run(row, col), target.run(row, col));
                let n = n.min(m).min(end - col);
                let source = numbers[from.index(row, col)..].iter().step_by(step);
                let places = to[target.index(row, col)..].iter_mut().step_by(stride);
                places.zip(source).take(n).for_each(|(to, from)| *to = convert(*from));
                col += n;
            }
        }
    }
    to
}

impl Factor {
    /// A stack from `f64` numbers: `value(block, row, col)`.
    pub fn from_fn(
        storage: Storage,
        (blocks, rows, cols): (usize, usize, usize),
        value: impl Fn(usize, usize, usize) -> f64,
    ) -> Self {
        Self::from_rows(storage, (blocks, rows, cols), &mut |i, row| {
            row.iter_mut().enumerate().for_each(|(j, v)| *v = value(i / rows, i % rows, j));
        })
    }

    /// A stack of the rows that `fill` fills in. Compiled once, for all that makes factors.
    fn from_rows(
        storage: Storage,
        (blocks, rows, cols): (usize, usize, usize),
        fill: &mut dyn FnMut(usize, &mut [f64]),
    ) -> Self {
        let shape = (blocks * rows, cols);
        let data = match storage {
            Storage::F64 => Data::F64(rounded(shape, fill, |v| v)),
            Storage::F32 => Data::F32(rounded(shape, fill, |v| v as f32)),
            Storage::Bf16 => Data::Bf16(rounded(shape, fill, bf16::from_f64)),
            Storage::F16 => {
                let limit = f16::MAX.to_f64();
                Data::F16(rounded(shape, fill, |v| f16::from_f64(v.clamp(-limit, limit))))
            }
            Storage::Int8 => {
                let (codes, scales) = quantize::int8(shape, fill);
                Data::Int8 { codes, scales }
            }
            Storage::Int4 => {
                let (codes, scales) = quantize::int4(shape, fill);
                Data::Int4 { codes, scales }
            }
        };
        Self { blocks, rows, cols, data: Arc::new(data), packing: None }
    }

    /// One matrix. `f32` arrays are kept exactly by [`Storage::F32`], `f64` arrays by [`Storage::F64`].
    pub fn from_matrix<T: Scalar>(storage: Storage, a: &ArrayRef2<T>) -> Self {
        Self::from_rows(storage, (1, a.nrows(), a.ncols()), &mut |i, row| {
            let from = a.row(i);
            match from.to_slice() {
                Some(from) => row.iter_mut().zip(from).for_each(|(v, a)| *v = a.widen()),
                None => row.iter_mut().zip(from).for_each(|(v, a)| *v = a.widen()),
            }
        })
    }

    /// [`from_matrix`](Self::from_matrix) and [`packed`](Self::packed) in one pass for [`Storage::F32`] and [`Storage::F64`]; in two where the matrix
    /// does not lie row by row.
    pub(crate) fn packed_from_matrix(storage: Storage, a: &ArrayRef2<f64>, op: Op) -> Self {
        let (rows, cols) = a.dim();
        let packing = Packing::new((1, rows, cols), op.order(Lanes::Rows, Lanes::Cols).0, false);
        let from = Layout { packing: None, rows, cols, paired: false };
        let to = Layout { packing, ..from };
        let data = match (storage, a.as_slice()) {
            (Storage::F32, Some(numbers)) => Data::F32(moved(numbers, from, to, |number| number as f32)),
            (Storage::F64, Some(numbers)) => Data::F64(moved(numbers, from, to, |number| number)),
            _ => return Self::from_matrix(storage, a).packed(op, 1),
        };
        Self { blocks: 1, rows, cols, data: Arc::new(data), packing }
    }

    /// A stack of equally shaped matrices; `shape` counts when the stack is empty.
    pub fn from_blocks(storage: Storage, shape: (usize, usize), blocks: &[Array2<f64>]) -> Self {
        debug_assert!(blocks.iter().all(|block| block.dim() == shape));
        Self::from_fn(storage, (blocks.len(), shape.0, shape.1), |b, i, j| blocks[b][[i, j]])
    }

    /// A stack from data as stored, as a file holds it.
    ///
    /// # Errors
    /// [`Error::Record`] when the lengths do not fit the shape, or a stored number is not finite.
    pub fn from_data((blocks, rows, cols): (usize, usize, usize), data: Data) -> Result<Self> {
        let bad = |reason: String| Error::record("factor", reason);
        let overflow = || bad(format!("{blocks} x {rows} x {cols} is too large"));
        let all_rows = blocks.checked_mul(rows).ok_or_else(overflow)?;
        let numbers = all_rows.checked_mul(cols).ok_or_else(overflow)?;
        let groups = all_rows.checked_mul(cols.div_ceil(GROUP)).ok_or_else(overflow)?;
        let (len, expected, scales, finite) = match &data {
            Data::F64(v) => (v.len(), numbers, None, v.iter().all(|v| v.is_finite())),
            Data::F32(v) => (v.len(), numbers, None, v.iter().all(|v| v.is_finite())),
            Data::Bf16(v) => (v.len(), numbers, None, v.iter().all(|v| v.is_finite())),
            Data::F16(v) => (v.len(), numbers, None, v.iter().all(|v| v.is_finite())),
            Data::Int8 { codes, scales } => (codes.len(), numbers, Some(scales), true),
            Data::Int4 { codes, scales } => (codes.len(), all_rows * cols.div_ceil(2), Some(scales), true),
        };
        if len != expected {
            return Err(bad(format!(
                "{len} numbers stored for {blocks} x {rows} x {cols}, expected {expected}"
            )));
        }
        if let Some(scales) = scales
            && scales.len() != groups
        {
            return Err(bad(format!(
                "{} scales stored for {blocks} x {rows} x {cols}, expected {groups}",
                scales.len()
            )));
        }
        if !finite || scales.is_some_and(|scales| scales.iter().any(|v| !v.is_finite())) {
            return Err(bad("a stored number is NaN or infinite".to_owned()));
        }
        Ok(Self { blocks, rows, cols, data: Arc::new(data), packing: None })
    }

    /// `(blocks, rows, cols)`.
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.blocks, self.rows, self.cols)
    }

    /// Number of matrices in the stack.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Rows of each.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of each.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of stored numbers.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.blocks * self.rows * self.cols
    }

    /// Bytes, scales included.
    pub fn bytes(&self) -> usize {
        self.storage().bytes(self.blocks * self.rows, self.cols)
    }

    /// The storage format.
    pub fn storage(&self) -> Storage {
        match &*self.data {
            Data::F64(_) => Storage::F64,
            Data::F32(_) => Storage::F32,
            Data::Bf16(_) => Storage::Bf16,
            Data::F16(_) => Storage::F16,
            Data::Int8 { .. } => Storage::Int8,
            Data::Int4 { .. } => Storage::Int4,
        }
    }

    /// The numbers as they lie in memory: row after row for a factor that came from numbers or [`to_rows`](Self::to_rows).
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The same factor laid out for its products in direction `op`, its rows cut into `blocks` blocks: the weights of one product
    /// are one stream. Small factors stay as they are. Products in the other direction work too, with more instructions per weight.
    pub(crate) fn packed(self, op: Op, blocks: usize) -> Self {
        let rows = self.blocks * self.rows;
        if blocks == 0 || !rows.is_multiple_of(blocks) {
            return self;
        }
        let (lanes, (_, paired)) = (op.order(Lanes::Rows, Lanes::Cols).0, self.coded());
        let packing = Packing::new((blocks, rows / blocks, self.cols), lanes, paired);
        self.into_layout(packing)
    }

    /// The same for products over `map` alone: blocks too narrow for a vector share panels, in the order of the features of `map`.
    pub(crate) fn packed_for(self, op: Op, map: PanelMap) -> Self {
        let (lanes, (scaled, paired)) = (op.order(Lanes::Rows, Lanes::Cols).0, self.coded());
        match Packing::shared(map, lanes, scaled, paired) {
            None => self.packed(op, map.blocks),
            shared => self.into_layout(shared),
        }
    }

    /// Whether numbers have scales, and whether two share a byte.
    fn coded(&self) -> (bool, bool) {
        match self.storage() {
            Storage::Int8 => (true, false),
            Storage::Int4 => (true, true),
            _ => (false, false),
        }
    }

    /// The same factor laid out for [`mix`](Self::mix).
    pub(crate) fn packed_to_mix(self) -> Self {
        self.packed(Op::Transpose, 1)
    }

    /// [`packed`](Self::packed) for forward products with its own blocks.
    pub(crate) fn packed_forward(self) -> Self {
        let blocks = self.blocks;
        self.packed(Op::Forward, blocks)
    }

    /// The same factor with its numbers row after row, as files hold them.
    pub fn to_rows(&self) -> Cow<'_, Self> {
        self.laid_out(None)
    }

    /// [`to_rows`](Self::to_rows) without a copy where that is so already.
    pub(crate) fn into_rows(self) -> Self {
        if self.packing.is_none() { self } else { self.to_rows().into_owned() }
    }

    /// Whether its blocks share panels, in the order of the features of one map.
    pub(crate) fn is_shared(&self) -> bool {
        self.packing.is_some_and(|packing| packing.is_shared())
    }

    fn into_layout(self, packing: Option<Packing>) -> Self {
        match self.laid_out(packing) {
            Cow::Borrowed(_) => self,
            Cow::Owned(packed) => packed,
        }
    }

    fn laid_out(&self, packing: Option<Packing>) -> Cow<'_, Self> {
        if packing == self.packing {
            return Cow::Borrowed(self);
        }
        let target = Layout { packing, ..self.layout() };
        let data = match &*self.data {
            Data::F64(v) => Data::F64(self.moved(v, target)),
            Data::F32(v) => Data::F32(self.moved(v, target)),
            Data::Bf16(v) => Data::Bf16(self.moved(v, target)),
            Data::F16(v) => Data::F16(self.moved(v, target)),
            Data::Int8 { codes, scales } => {
                Data::Int8 { codes: self.moved(codes, target), scales: self.moved_scales(scales, target) }
            }
            Data::Int4 { codes, scales } => {
                let from = self.layout();
                // Codes beyond the numbers stand for zero.
                let mut to = AlignedVec::from_fn(target.len().div_ceil(2), |_| 0x88u8);
                for row in 0..self.blocks * self.rows {
                    for col in 0..self.cols {
                        let (i, j) = (from.index(row, col), target.index(row, col));
                        let (code, shift) = (codes[i / 2] >> (4 * (i % 2)) & 0xf, 4 * (j % 2));
                        to[j / 2] = to[j / 2] & !(0xf << shift) | code << shift;
                    }
                }
                Data::Int4 { codes: to, scales: self.moved_scales(scales, target) }
            }
        };
        Cow::Owned(Self { data: Arc::new(data), packing, ..*self })
    }

    fn layout(&self) -> Layout {
        let paired = self.storage() == Storage::Int4;
        Layout { packing: self.packing, rows: self.blocks * self.rows, cols: self.cols, paired }
    }

    fn moved<E: bytemuck::Pod>(&self, numbers: &[E], target: Layout) -> AlignedVec<E> {
        moved(numbers, self.layout(), target, |number| number)
    }

    fn moved_scales(&self, scales: &[bf16], target: Layout) -> AlignedVec<bf16> {
        let (from, mut to) = (self.layout(), AlignedVec::zeroed(target.scales_len()));
        if let Some(ones) = target.packing.filter(|packing| packing.lanes == Lanes::Cols).map(|p| p.ones()) {
            to[ones..].fill(bf16::ONE);
        }
        for row in 0..from.rows {
            for col in (0..from.cols).step_by(GROUP) {
                to[target.scale_index(row, col)] = scales[from.scale_index(row, col)];
            }
        }
        to
    }

    /// The number at a row of the blocks one below the other.
    fn value(&self, row: usize, col: usize) -> f64 {
        let layout = self.layout();
        let at = layout.index(row, col);
        // Rounded as the vectors round it: both factors are exact in f32, so is nearly every product.
        let scaled = |code: i8, scales: &[bf16]| {
            f64::from(f32::from(code) * scales[layout.scale_index(row, col)].to_f32())
        };
        match &*self.data {
            Data::F64(v) => v[at],
            Data::F32(v) => f64::from(v[at]),
            Data::Bf16(v) => v[at].to_f64(),
            Data::F16(v) => v[at].to_f64(),
            Data::Int8 { codes, scales } => scaled(codes[at], scales),
            Data::Int4 { codes, scales } => scaled((codes[at / 2] >> (4 * (at % 2)) & 0xf) as i8 - 8, scales),
        }
    }

    /// The number at `(block, row, col)`, decoded. Panics when out of range.
    pub fn get(&self, block: usize, row: usize, col: usize) -> f64 {
        assert!(block < self.blocks && row < self.rows && col < self.cols);
        self.value(block * self.rows + row, col)
    }

    /// Matrix `block`, decoded.
    pub fn matrix(&self, block: usize) -> Array2<f64> {
        Array2::from_shape_fn((self.rows, self.cols), |(i, j)| self.get(block, i, j))
    }

    /// All matrices, decoded: `blocks x rows x cols`.
    pub fn to_array(&self) -> Array3<f64> {
        self.numbers()
    }

    /// The same in either compute type.
    pub fn numbers<T: Scalar>(&self) -> Array3<T> {
        Array3::from_shape_fn(self.shape(), |(b, i, j)| T::narrow(self.value(b * self.rows + i, j)))
    }

    /// Decodes row `row` of block `block`, starting at column `from`, into `out`.
    pub fn decode_row<T: Scalar>(&self, block: usize, row: usize, from: usize, out: &mut [T]) {
        assert!(block < self.blocks && row < self.rows && from + out.len() <= self.cols);
        let row = block * self.rows + row;
        for (j, value) in out.iter_mut().enumerate() {
            *value = T::narrow(self.value(row, from + j));
        }
    }

    /// The same numbers in another storage; a copy when it is the same one.
    pub fn to_storage(&self, storage: Storage) -> Self {
        if storage == self.storage() {
            return self.clone();
        }
        Self::from_fn(storage, self.shape(), |b, i, j| self.get(b, i, j))
    }

    /// A copy with numbers of its own, which clones share.
    pub fn unshared(&self) -> Self {
        Self { data: Arc::new(Data::clone(&self.data)), ..*self }
    }

    /// `Y (+)= X Aᵀ` (forward) or `Y (+)= X A` (transposed) for the first matrix `A` of the stack.
    pub fn multiply<T: Scalar>(
        &self,
        op: Op,
        x: Rows<'_, T>,
        y: RowsMut<'_, T>,
        update: Update,
        policy: Policy,
    ) {
        self.multiply_rows(0, 0..self.rows, op, x, y, update, policy);
    }

    /// The same for rows `range` of matrix `block`: forward writes `range.len()` outputs, transposed reads as many inputs. Panics when they are
    /// out of range, or not what a packed factor is laid out for: the whole of a matrix, or forward rows that start and end at multiples of
    /// 32 or at the last. [`to_rows`](Self::to_rows) serves all.
    #[allow(clippy::too_many_arguments)]
    pub fn multiply_rows<T: Scalar>(
        &self,
        block: usize,
        range: Range<usize>,
        op: Op,
        x: Rows<'_, T>,
        y: RowsMut<'_, T>,
        update: Update,
        policy: Policy,
    ) {
        assert!(block < self.blocks && range.start <= range.end && range.end <= self.rows);
        let first = block * self.rows + range.start;
        let map = PanelMap::contiguous(1, range.len(), self.cols);
        self.multiply_part(first, 0, map, op, x, y, update, policy);
    }

    /// All matrices of the stack at once, each on its own features, or all rows of the stack cut into another number of blocks. Inputs and
    /// outputs of block `b` lie where `map` says; features that no block owns are left alone.
    pub fn multiply_blocks<T: Scalar>(
        &self,
        map: PanelMap,
        op: Op,
        x: Rows<'_, T>,
        y: RowsMut<'_, T>,
        update: Update,
        policy: Policy,
    ) {
        assert!(map.blocks * map.rows == self.blocks * self.rows && map.cols == self.cols);
        self.multiply_part(0, 0, map, op, x, y, update, policy);
    }

    /// The same for the stack of blocks that starts at row `first` of the rows one below the other and column `column`. Columns start and end at
    /// multiples of [`PANEL`](crate::kernels::PANEL), or at the last one.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn multiply_part<T: Scalar>(
        &self,
        first: usize,
        column: usize,
        map: PanelMap,
        op: Op,
        x: Rows<'_, T>,
        y: RowsMut<'_, T>,
        update: Update,
        policy: Policy,
    ) {
        T::panels(self, PanelProduct { first, column, packing: self.packing, map, op, x, y, update, policy });
    }

    /// `y (+)= a ∘ x` for the row `a = A[row, from..]` of matrix `block`, entry by entry.
    #[allow(clippy::too_many_arguments)]
    pub fn scale_row<T: Scalar>(
        &self,
        block: usize,
        row: usize,
        from: usize,
        x: &[T],
        y: &mut [T],
        update: Update,
        policy: Policy,
    ) {
        assert!(block < self.blocks && row < self.rows && from + x.len() <= self.cols && x.len() == y.len());
        let row = block * self.rows + row;
        T::scale(self, RowScaling { row, from, x, y, update, policy });
    }

    /// $y_q = \sum_p a_{qp} \circ x_p$ for blocks of `x` and `y` as wide as a row, with $a_{qp}$ row `p` of matrix `q` (forward) or row `q` of
    /// matrix `p` (transposed). Panics when `x` and `y` do not fit, or a packed factor is laid out for other products.
    pub fn mix<T: Scalar>(&self, op: Op, x: Rows<'_, T>, y: RowsMut<'_, T>, policy: Policy) {
        self.mix_columns(0..self.cols, self.cols, op, x, y, policy);
    }

    /// The same with columns `columns` alone, which blocks of `x` and `y` are as wide as; each block starts `block_stride` numbers after the one
    /// before. Columns start at a multiple of [`PANEL`](crate::kernels::PANEL), and end at one or at the last.
    pub(crate) fn mix_columns<T: Scalar>(
        &self,
        columns: Range<usize>,
        block_stride: usize,
        op: Op,
        x: Rows<'_, T>,
        y: RowsMut<'_, T>,
        policy: Policy,
    ) {
        let (outputs, inputs) = op.order(self.blocks, self.rows);
        let strides = op.order((1, self.rows), (self.rows, 1)).0;
        let packing = self.packing;
        T::mix(
            self,
            Mix { blocks: (inputs, outputs), block_stride, columns, strides, packing, x, y, policy },
        );
    }

    pub(crate) fn panels<T: Scalar>(&self, product: PanelProduct<'_, T>) {
        with_source!(self, source => kernels::multiply(source, product));
    }

    pub(crate) fn mixing<T: Scalar>(&self, mix: Mix<'_, T>) {
        with_source!(self, source => kernels::mix(source, mix));
    }

    pub(crate) fn scaling<T: Scalar>(&self, scaling: RowScaling<'_, T>) {
        with_source!(self, source => kernels::scale(source, scaling));
    }

    /// `Y (+)= X Aᵀ` or `Y (+)= X A` for the sparse matrix `A` whose values these are (one block of one row).
    pub(crate) fn multiply_sparse<T: Scalar>(&self, product: SparseProduct<'_, T>) {
        T::sparse(self, product);
    }

    pub(crate) fn sparse<T: Scalar>(&self, product: SparseProduct<'_, T>) {
        with_source!(self, source => kernels::multiply_sparse(source, product));
    }

    /// `Y (+)= X Aᵀ` or `Y (+)= X A` for the matrix `A` of windows whose numbers these are (one block of one row).
    pub(crate) fn multiply_windows<T: Scalar>(&self, product: WindowProduct<'_, T>) {
        T::windows(self, product);
    }

    pub(crate) fn windows<T: Scalar>(&self, product: WindowProduct<'_, T>) {
        with_source!(self, source => kernels::multiply_windows(source, product));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_their_numbers_and_unshared_copies_do_not() {
        for storage in [Storage::F32, Storage::Bf16, Storage::Int8] {
            let factor = Factor::from_fn(storage, (2, 3, 4), |b, i, j| (b + 2 * i + 3 * j) as f64);
            let (clone, own) = (factor.clone(), factor.unshared());
            assert!(Arc::ptr_eq(&factor.data, &clone.data) && !Arc::ptr_eq(&factor.data, &own.data));
            assert_eq!(factor, own);
        }
    }
}

//! Batches whose rows use different adapters.

use super::Edit;
use crate::error::{Error, Result};
use crate::exec::{Exec, Workspace};
use crate::kernels::{Rows, RowsMut};
use crate::matrix::{Op, Operands, StructuredMatrix, Update, with_operands};
use crate::scalar::Scalar;
use ndarray::ArrayRef2;

/// Rows that are sorted by their edits at a time: what the stack has room for.
const SORTED: usize = 1024;

/// Rows that all use one edit need no sorting.
static IN_ORDER: [usize; SORTED] = {
    let mut rows = [0; SORTED];
    let mut i = 0;
    while i < SORTED {
        rows[i] = i;
        i += 1;
    }
    rows
};

/// `Y = X W'ᵀ` where row `i` of the batch uses the edit `which[i]`, or the base alone: what a server of many tenants multiplies.
///
/// One base product serves all rows. What stands before it, behind it or beside it is multiplied for all rows of one edit together (of each 1024
/// rows), wherever they stand in the batch; rows that stand together are not copied. Allocates nothing once `exec` has grown to this size.
///
/// ```
/// use structmat::prelude::*;
/// use structmat::adapters::{Adapter, methods, several};
/// use structmat::ndarray::{Array2, array};
/// let base = Dense::new(&array![[1.0f32, 1.0]])?;
/// let edit = methods::lora(&array![[10.0f32]], &array![[1.0, 0.0]], 1.0)?.edit(&base)?;
/// let mut y = Array2::zeros((2, 1));
/// several::apply_rows(&base, &[&edit], &[None, Some(0)], &array![[1.0f32, 2.0], [1.0, 2.0]], &mut y, &mut Exec::new())?;
/// assert_eq!(y, array![[3.0], [13.0]]);
/// # Ok::<(), structmat::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] when the shapes do not fit, [`Error::Parameter`] for an edit that is not there; `y` is then untouched.
pub fn apply_rows<T: Scalar>(
    base: &dyn StructuredMatrix,
    edits: &[&Edit],
    which: &[Option<usize>],
    x: &ArrayRef2<T>,
    y: &mut ArrayRef2<T>,
    exec: &mut Exec<T>,
) -> Result<()> {
    let (m, n) = base.shape();
    if which.len() != x.nrows() {
        return Err(Error::shape("edits of the rows", &[x.nrows()], &[which.len()]));
    }
    for k in which.iter().flatten() {
        match edits.get(*k).map(|edit| edit.shape()) {
            None => return Err(Error::parameter("edit of a row", k, format!("less than {}", edits.len()))),
            Some(shape) if shape != (m, n) => {
                return Err(Error::shape("edit of a row", &[m, n], &[shape.0, shape.1]));
            }
            Some(_) => {}
        }
    }
    let work = (exec, scratch_len(base, edits, which));
    with_operands((m, n), Op::Forward, x, y, Update::Overwrite, work, |operands| {
        multiply(base, edits, which, operands);
    })
}

/// Every edit that rows use, with those rows, ascending.
fn for_each_edit(which: &[Option<usize>], mut visit: impl FnMut(usize, &[usize])) {
    if let [first, rest @ ..] = which
        && let Some(rows) = IN_ORDER.get(..which.len())
        && rest.iter().all(|edit| edit == first)
    {
        return first.iter().for_each(|edit| visit(*edit, rows));
    }
    let mut order = [0; SORTED];
    for (part, own) in which.chunks(SORTED).enumerate() {
        let order = &mut order[..own.len()];
        order.iter_mut().enumerate().for_each(|(i, row)| *row = part * SORTED + i);
        order.sort_unstable_by_key(|row| (which[*row], *row));
        for rows in order.chunk_by(|a, b| which[*a] == which[*b]) {
            if let Some(edit) = which[rows[0]] {
                visit(edit, rows);
            }
        }
    }
}

/// Whether ascending rows stand together.
fn adjacent(rows: &[usize]) -> bool {
    rows[rows.len() - 1] - rows[0] + 1 == rows.len()
}

fn scratch_len(base: &dyn StructuredMatrix, edits: &[&Edit], which: &[Option<usize>]) -> usize {
    let ((m, n), panel) = (base.shape(), Workspace::<f32>::matrix_len);
    let (mut turned, mut deepest) = (0, base.scratch_len(which.len()));
    for_each_edit(which, |edit, rows| {
        let (edit, count) = (edits[edit], rows.len());
        let copy = |width| if adjacent(rows) { 0 } else { panel(count, width) };
        let parts = [
            (edit.right(), copy(n) + copy(n)),
            (edit.left(), panel(count, m) + copy(m)),
            (edit.additive(), copy(n) + copy(m)),
        ];
        for (part, panels) in parts {
            deepest = deepest.max(part.map_or(0, |part| panels + part.scratch_len(count)));
        }
        if edit.right().is_some() {
            turned = panel(which.len(), n);
        }
    });
    turned + deepest
}

/// `L_i (W (R_i x_i)) + D_i x_i`, each factor for all rows that have it.
fn multiply<T: Scalar>(
    base: &dyn StructuredMatrix,
    edits: &[&Edit],
    which: &[Option<usize>],
    operands: Operands<'_, T>,
) {
    let Operands { op, x, mut y, update, mut work } = operands;
    let turns = which.iter().flatten().any(|k| edits[*k].right().is_some());
    let (mut inner, mut input) = (work.reborrow(), x);
    if turns {
        let (mut turned, mut rest) = inner.matrix(x.rows(), x.cols());
        (0..x.rows()).for_each(|row| turned.row(row).copy_from_slice(x.row(row)));
        for_each_edit(which, |edit, rows| {
            if let Some(right) = edits[edit].right() {
                on_rows(right, rows, x, turned.reborrow(), Update::Overwrite, rest.reborrow());
            }
        });
        (input, inner) = (turned.into_rows(), rest);
    }
    T::multiply(base, Operands { op, x: input, y: y.reborrow(), update, work: inner });
    for_each_edit(which, |edit, rows| {
        if let Some(left) = edits[edit].left() {
            // Its inputs stand where its outputs go.
            let (middle, work) = gathered(y.as_rows(), rows, work.reborrow());
            onto_rows(left, rows, middle, y.reborrow(), Update::Overwrite, work);
        }
        if let Some(delta) = edits[edit].additive() {
            on_rows(delta, rows, x, y.reborrow(), Update::Accumulate, work.reborrow());
        }
    });
}

/// `Y (+)= X Aᵀ` for these rows of `x` and `y`.
fn on_rows<T: Scalar>(
    matrix: &dyn StructuredMatrix,
    rows: &[usize],
    x: Rows<'_, T>,
    y: RowsMut<'_, T>,
    update: Update,
    work: Workspace<'_, T>,
) {
    if adjacent(rows) {
        return onto_rows(matrix, rows, x.batch(rows[0]..rows[0] + rows.len()), y, update, work);
    }
    let (x, work) = gathered(x, rows, work);
    onto_rows(matrix, rows, x, y, update, work);
}

/// A copy of some rows.
fn gathered<'a, T: Scalar>(
    x: Rows<'_, T>,
    rows: &[usize],
    work: Workspace<'a, T>,
) -> (Rows<'a, T>, Workspace<'a, T>) {
    let (mut panel, rest) = work.matrix(rows.len(), x.cols());
    rows.iter().enumerate().for_each(|(to, row)| panel.row(to).copy_from_slice(x.row(*row)));
    (panel.into_rows(), rest)
}

/// `Y (+)= X Aᵀ` for these rows of `y` and all of `x`.
fn onto_rows<T: Scalar>(
    matrix: &dyn StructuredMatrix,
    rows: &[usize],
    x: Rows<'_, T>,
    mut y: RowsMut<'_, T>,
    update: Update,
    work: Workspace<'_, T>,
) {
    let op = Op::Forward;
    if adjacent(rows) {
        let y = y.batch(rows[0]..rows[0] + rows.len());
        return T::multiply(matrix, Operands { op, x, y, update, work });
    }
    let (mut panel, work) = work.matrix(rows.len(), y.cols());
    if update == Update::Accumulate {
        rows.iter().enumerate().for_each(|(from, row)| panel.row(from).copy_from_slice(y.row(*row)));
    }
    T::multiply(matrix, Operands { op, x, y: panel.reborrow(), update, work });
    rows.iter().enumerate().for_each(|(from, row)| y.row(*row).copy_from_slice(panel.row(from)));
}

//! Block-diagonal stages over features that the blocks need not divide.

use crate::exec::Workspace;
use crate::kernels::{PanelMap, Rows, RowsMut};
use crate::matrix::{Op, Update};
use crate::scalar::Scalar;
use crate::storage::Factor;

/// Scratch of [`multiply_padded`] for a stage between `rows` and `cols` features.
pub(crate) fn padded_scratch_len(map: PanelMap, batch: usize, rows: usize, cols: usize) -> usize {
    let side =
        |have: usize, need: usize| if have < need { Workspace::<f32>::matrix_len(batch, need) } else { 0 };
    side(rows, map.blocks * map.rows) + side(cols, map.blocks * map.cols)
}

/// [`Factor::multiply_blocks`], with inputs zero-padded and outputs cut where the blocks reach beyond the features. No copy
/// where they do not.
pub(crate) fn multiply_padded<T: Scalar>(
    factor: &Factor,
    map: PanelMap,
    op: Op,
    x: Rows<'_, T>,
    y: RowsMut<'_, T>,
    update: Update,
    mut work: Workspace<'_, T>,
) {
    let (batch, policy) = (x.rows(), work.policy);
    let (outputs, inputs) = op.order(map.blocks * map.rows, map.blocks * map.cols);
    let x = if x.cols() < inputs {
        let (mut padded, rest) = work.matrix(batch, inputs);
        work = rest;
        for b in 0..batch {
            let (kept, pad) = padded.row(b).split_at_mut(x.cols());
            kept.copy_from_slice(x.row(b));
            pad.fill(T::default());
        }
        padded.into_rows()
    } else {
        x
    };
    if y.cols() == outputs {
        return factor.multiply_blocks(map, op, x, y, update, policy);
    }
    let (mut whole, _) = work.matrix(batch, outputs);
    factor.multiply_blocks(map, op, x, whole.reborrow(), Update::Overwrite, policy);
    let mut y = y;
    let cols = y.cols();
    for b in 0..batch {
        let (from, to) = (&whole.row(b)[..cols], y.row(b));
        match update {
            Update::Overwrite => to.copy_from_slice(from),
            Update::Accumulate => to.iter_mut().zip(from).for_each(|(to, from)| *to += *from),
        }
    }
}

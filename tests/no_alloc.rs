//! After the first call, products allocate nothing. Alone in its file: it counts every allocation of the process.

mod common;

use common::{gaussian_of, member};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use structmat::Scalar;
use structmat::adapters::{Adapter, methods, several};
use structmat::layers::{Activation, Linear, LostLayer, LostSpec, TiedFfn};
use structmat::ndarray::{Array1, Array2};
use structmat::prelude::*;
use structmat::registry::FAMILIES;

/// The system's allocator, counting the calls of each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.with(Cell::get);
    work();
    COUNT.with(Cell::get) - before
}

fn check<T: Scalar>(storage: Storage) {
    for entry in FAMILIES {
        for shape in [(48, 64), (37, 29)] {
            let w = member(entry, shape, storage, 1);
            let mut exec = Exec::<T>::new();
            for batch in [1, 3, 40] {
                let (x, g) = (gaussian_of::<T>(batch, shape.1, 1), gaussian_of::<T>(batch, shape.0, 2));
                let (mut y, mut dx) = (Array2::zeros((batch, shape.0)), Array2::zeros((batch, shape.1)));
                let mut strided = Array2::zeros((shape.0, batch));
                let mut all = || {
                    w.apply_into(&x, &mut y, Update::Overwrite, &mut exec).unwrap();
                    w.apply_into(&x, &mut y, Update::Accumulate, &mut exec).unwrap();
                    w.apply_transpose_into(&g, &mut dx, Update::Overwrite, &mut exec).unwrap();
                    w.apply_into(&x, &mut strided.view_mut().reversed_axes(), Update::Overwrite, &mut exec)
                        .unwrap();
                };
                all();
                assert_eq!(allocations(all), 0, "{} {storage} {shape:?} batch {batch}", entry.name);
            }
            let (x, mut y) = (vec![T::narrow(1.0); shape.1], vec![T::narrow(0.0); shape.0]);
            assert_eq!(allocations(|| w.matvec_into(&x, &mut y, &mut exec).unwrap()), 0, "{}", entry.name);
        }
    }
}

#[test]
fn products_do_not_allocate_after_the_first_call() {
    assert!(allocations(|| drop(std::hint::black_box(vec![1u8; 100]))) > 0, "the counter does not count");
    for storage in Storage::ALL {
        check::<f32>(storage);
        check::<f64>(storage);
    }
}

#[test]
fn layers_do_not_allocate_after_the_first_call() {
    let weight = member(structmat::registry::family("low_rank").unwrap(), (20, 30), Storage::Bf16, 1);
    let layer = Linear::new(weight, Some(&Array1::<f32>::ones(20))).unwrap();
    let (x, mut y) = (gaussian_of::<f32>(5, 30, 1), Array2::zeros((5, 20)));
    let mut exec = Exec::new();
    layer.forward_into(&x, &mut y, &mut exec).unwrap();
    assert_eq!(allocations(|| layer.forward_into(&x, &mut y, &mut exec).unwrap()), 0);
    let spec = LostSpec { rank: 4, kept: 3, ..LostSpec::default() };
    let layer = LostLayer::init(&gaussian_of::<f32>(20, 30, 2), &spec, &Options::default()).unwrap();
    layer.forward_into(&x, &mut y, &mut exec).unwrap();
    assert_eq!(allocations(|| layer.forward_into(&x, &mut y, &mut exec).unwrap()), 0);
    for activation in [Activation::Gelu, Activation::Tanh] {
        let weight = member(structmat::registry::family("monarch").unwrap(), (48, 30), Storage::F32, 1);
        let layer = TiedFfn::new(weight, Some(&Array1::<f32>::ones(48)), activation, None).unwrap();
        let (mut y, mut strided) = (Array2::zeros((5, 30)), Array2::zeros((30, 5)));
        let mut all = || {
            layer.forward_into(&x, &mut y, &mut exec).unwrap();
            layer.forward_into(&x, &mut strided.view_mut().reversed_axes(), &mut exec).unwrap();
        };
        all();
        assert_eq!(allocations(all), 0, "{activation:?}");
    }
}

#[test]
fn edits_do_not_allocate_after_the_first_call() {
    let base = member(structmat::registry::family("dense").unwrap(), (20, 30), Storage::F32, 1);
    let lora = methods::lora(&gaussian_of::<f32>(20, 3, 2), &gaussian_of::<f32>(3, 30, 3), 0.5).unwrap();
    let lora = lora.edit(base.as_ref()).unwrap();
    let turn = methods::hra((20, 30), &gaussian_of::<f64>(30, 2, 4), false).unwrap().into_edit();
    let scaling = methods::scaling((20, 30), Some(&[2.0; 20]), None).unwrap().edit(base.as_ref()).unwrap();
    let edits = [&lora, &turn, &scaling];
    // Rows that stand together and such that do not, of every form.
    let which = [Some(0), None, Some(1), Some(0), Some(0), Some(2), Some(1), Some(2), None];
    let (x, mut y) = (gaussian_of::<f32>(9, 30, 1), Array2::zeros((9, 20)));
    let mut exec = Exec::new();
    let mut all = || {
        lora.apply_into(base.as_ref(), &x, &mut y, Update::Overwrite, &mut exec).unwrap();
        turn.apply_into(base.as_ref(), &x, &mut y, Update::Accumulate, &mut exec).unwrap();
        several::apply_rows(base.as_ref(), &edits, &which, &x, &mut y, &mut exec).unwrap();
    };
    all();
    assert_eq!(allocations(all), 0);
}

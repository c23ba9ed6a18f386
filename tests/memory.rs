//! Vectors of every size, made and dropped in any order: zeros, aligned, and their own.

use structmat::kernels::AlignedVec;

#[test]
fn vectors_made_after_others_were_dropped_are_zeros_and_their_own() {
    // Below a small page, on shared large pages, on pages of their own.
    let sizes = [1, 16, 1023, 1024, 1025, 50_000, 262_144, 520_000, 524_288, 900_000];
    let mut kept: Vec<(f32, AlignedVec<f32>)> = Vec::new();
    for turn in 0..120 {
        let mut vec = AlignedVec::<f32>::zeroed(sizes[turn * 7 % sizes.len()]);
        assert!(vec.as_ptr().addr().is_multiple_of(64));
        assert!(vec.iter().all(|v| v.to_bits() == 0), "turn {turn}: not zeros");
        let mark = turn as f32 + 1.0;
        vec.fill(mark);
        kept.push((mark, vec));
        if turn % 3 != 0 {
            let (mark, vec) = kept.swap_remove(turn * 5 % kept.len());
            assert!(vec.clone() == vec && vec.iter().all(|v| *v == mark), "turn {turn}");
        }
    }
    assert!(kept.iter().all(|(mark, vec)| vec.iter().all(|v| v == mark)));
}

#[test]
fn threads_share_pages_but_no_numbers() {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut kept = Vec::new();
                for turn in 0..50 {
                    let mut vec = AlignedVec::<u32>::zeroed(1024 + (turn * 977 + thread * 3571) % 100_000);
                    assert!(vec.iter().all(|v| *v == 0));
                    vec.fill(thread as u32 + 1);
                    kept.push(vec);
                    if turn % 2 == 1 {
                        kept.swap_remove(turn % kept.len());
                    }
                }
                assert!(kept.iter().all(|vec| vec.iter().all(|v| *v == thread as u32 + 1)));
            });
        }
    });
}

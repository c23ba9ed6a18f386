//! Handing half of a product to another thread.
//!
//! Waking a sleeping thread takes longer than many products. Threads of this team therefore look for work for [`AWAKE`] after
//! their last piece of it, and sleep only then; whoever hands work to one that has not begun when it is needed takes it back. Inside
//! a rayon pool the pool's own threads are used, and the team's are not.
//!
//! A cache line that goes from one core to another takes as long as a small product, so lines go one way: work lies where the member
//! looks for it, and what one side writes the other only reads. Handing over and back then takes two such journeys.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long an idle member stays awake.
const AWAKE: Duration = Duration::from_micros(100);
/// Looks at the other side between looks at the clock, offers of the core to other threads, or attempts to take work back.
const LOOKS: usize = 1 << 7;
/// Words of the largest closure that is handed over by value.
const WORDS: usize = 56;

/// Threads that products outside of a rayon pool may use: as many as the machine runs at once.
pub(crate) fn width() -> usize {
    static WIDTH: OnceLock<usize> = OnceLock::new();
    *WIDTH.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Runs both, at the same time where another thread is free. What `right` owns is where the other thread looks first.
pub(crate) fn join(left: impl FnOnce() + Send, right: impl FnOnce() + Send) {
    if rayon::current_thread_index().is_some() {
        rayon::join(left, right);
        return;
    }
    match team().iter().find(|member| member.claim()) {
        Some(member) => member.join(left, right),
        None => {
            left();
            right();
        }
    }
}

/// The members; started when first asked for.
fn team() -> &'static [Member] {
    static TEAM: OnceLock<Vec<Member>> = OnceLock::new();
    TEAM.get_or_init(|| (1..width()).filter_map(Member::start).collect())
}

/// By itself in the lines that a core fetches together.
#[repr(align(128))]
struct Apart<T>(T);

/// What a member and those who give it work share. Pieces of work are numbered from 1 on.
struct Shared {
    /// Whether somebody uses the member.
    claimed: Apart<AtomicBool>,
    post: Apart<Post>,
    /// The latest piece that was begun: whoever raises this runs it.
    begun: Apart<AtomicUsize>,
    end: Apart<End>,
    asleep: Apart<AtomicBool>,
}

/// The latest piece of work.
struct Post {
    number: AtomicUsize,
    run: UnsafeCell<Run>,
    work: UnsafeCell<Work>,
}

/// Runs the closure that lies there.
type Run = unsafe fn(*mut Work) -> Option<Panic>;
type Work = [MaybeUninit<usize>; WORDS];
type Panic = Box<dyn Any + Send>;

/// The latest piece that the member has done, and how it ended.
struct End {
    number: AtomicUsize,
    panic: UnsafeCell<Option<Panic>>,
}

// SAFETY: `run` and `work` are written by whoever has claimed the member, before a piece is posted, and read by whoever has begun that
// piece; `panic` is written by the member before it says that a piece is done, and taken by the claimant after that. A member is claimed
// until its piece is done or was taken back.
unsafe impl Sync for Shared {}

struct Member {
    shared: &'static Shared,
    thread: Thread,
}

impl std::ops::Deref for Member {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        self.shared
    }
}

/// # Safety
/// `work` holds an `F`, which nobody uses afterwards.
unsafe fn run<F: FnOnce()>(work: *mut Work) -> Option<Panic> {
    // SAFETY: the caller's.
    let work = unsafe { work.cast::<F>().read() };
    catch_unwind(AssertUnwindSafe(work)).err()
}

impl Member {
    fn start(number: usize) -> Option<Self> {
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            claimed: Apart(AtomicBool::new(false)),
            post: Apart(Post {
                number: AtomicUsize::new(0),
                run: UnsafeCell::new(run::<fn()>),
                work: UnsafeCell::new([const { MaybeUninit::uninit() }; WORDS]),
            }),
            begun: Apart(AtomicUsize::new(0)),
            end: Apart(End { number: AtomicUsize::new(0), panic: UnsafeCell::new(None) }),
            asleep: Apart(AtomicBool::new(false)),
        }));
        let name = format!("structmat-{number}");
        let handle = thread::Builder::new().name(name).spawn(|| shared.serve()).ok()?;
        Some(Self { shared, thread: handle.thread().clone() })
    }

    /// Runs `left` here and `right` there. The caller has claimed the member.
    fn join<F: FnOnce() + Send>(&self, left: impl FnOnce() + Send, right: F) {
        if size_of::<F>() <= size_of::<Work>() && align_of::<F>() <= align_of::<Work>() {
            // SAFETY: it fits.
            return unsafe { self.hand_over(left, right) };
        }
        let mut right = Some(right);
        let by_reference = || {
            if let Some(right) = right.take() {
                right();
            }
        };
        // SAFETY: a reference fits.
        unsafe { self.hand_over(left, by_reference) };
    }

    /// # Safety
    /// An `F` fits into `Work`, and the caller has claimed the member.
    unsafe fn hand_over<F: FnOnce() + Send>(&self, left: impl FnOnce() + Send, right: F) {
        let post = &self.post.0;
        let number = post.number.load(Relaxed).wrapping_add(1);
        // SAFETY: the member is claimed and its last piece over, so that nobody else looks at these; an `F` fits. Whoever begins the
        // piece reads it, once.
        unsafe {
            *post.run.get() = run::<F>;
            post.work.get().cast::<F>().write(right);
        }
        post.number.store(number, Release);
        let asleep = self.asleep.0.load(Relaxed);
        if asleep {
            self.thread.unpark();
        }
        // Whatever happens in `left`, what `right` borrows stays until the piece is over.
        let panic = catch_unwind(AssertUnwindSafe(left)).err();
        let other = self.wait(number, asleep);
        self.claimed.0.store(false, Release);
        if let Some(panic) = panic.or(other) {
            resume_unwind(panic);
        }
    }

    /// Until piece `number` is done. One that was not begun, as the member sleeps or another program has its core, is taken back.
    fn wait(&self, number: usize, asleep: bool) -> Option<Panic> {
        let (mut looks, mut begun) = (0usize, false);
        let mut patience = if asleep { 1 } else { LOOKS };
        while self.end.0.number.load(Acquire) != number {
            looks += 1;
            if !looks.is_multiple_of(patience) {
                spin_loop();
            } else if !begun && self.begin(number) {
                // SAFETY: the piece was posted and is begun here.
                return unsafe { (*self.post.0.run.get())(self.post.0.work.get()) };
            } else {
                (begun, patience) = (true, LOOKS);
                thread::yield_now();
            }
        }
        // SAFETY: the member has done the piece.
        unsafe { (*self.end.0.panic.get()).take() }
    }
}

impl Shared {
    fn claim(&self) -> bool {
        self.claimed.0.compare_exchange(false, true, Acquire, Relaxed).is_ok()
    }

    /// Whether piece `number` is the caller's to run.
    fn begin(&self, number: usize) -> bool {
        self.begun.0.compare_exchange(number.wrapping_sub(1), number, Acquire, Relaxed).is_ok()
    }

    /// The life of a member.
    fn serve(&self) {
        let (mut since, mut looks, mut last) = (Instant::now(), 0usize, 0usize);
        loop {
            let number = self.post.0.number.load(Acquire);
            if number != last {
                last = number;
                if self.begin(number) {
                    // SAFETY: the piece was posted and is begun here; its closure and what that borrows live until it is done.
                    unsafe {
                        let panic = (*self.post.0.run.get())(self.post.0.work.get());
                        if panic.is_some() {
                            *self.end.0.panic.get() = panic;
                        }
                    }
                    self.end.0.number.store(number, Release);
                }
                (since, looks) = (Instant::now(), 0);
                continue;
            }
            spin_loop();
            looks += 1;
            if looks.is_multiple_of(LOOKS) && since.elapsed() > AWAKE {
                self.asleep.0.store(true, SeqCst);
                // Who posts after this look sees `asleep`, and wakes the member; who does not see it takes the work back.
                if self.post.0.number.load(SeqCst) == last {
                    thread::park();
                }
                self.asleep.0.store(false, SeqCst);
                since = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn sum(from: usize, to: usize, total: &AtomicUsize) {
        if to - from < 4 {
            total.fetch_add((from..to).sum::<usize>(), SeqCst);
            return;
        }
        let middle = from.midpoint(to);
        join(|| sum(from, middle, total), || sum(middle, to, total));
    }

    #[test]
    fn every_piece_runs_once_awake_or_asleep_from_any_thread() {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for pause in [0, 0, 300, 0, 1000] {
                        thread::sleep(Duration::from_micros(pause));
                        for _ in 0..50 {
                            let total = AtomicUsize::new(0);
                            sum(0, 100, &total);
                            assert_eq!(total.into_inner(), 4950);
                        }
                    }
                });
            }
        });
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let total = AtomicUsize::new(0);
        pool.install(|| sum(0, 100, &total));
        assert_eq!(total.into_inner(), 4950);
    }

    #[test]
    fn panics_cross_and_leave_the_team_whole() {
        for side in 0..2 {
            let fail = |mine: usize| assert_ne!(mine, side, "expected");
            assert!(catch_unwind(|| join(|| fail(0), || fail(1))).is_err());
        }
        let total = AtomicUsize::new(0);
        sum(0, 10, &total);
        assert_eq!(total.into_inner(), 45);
    }
}

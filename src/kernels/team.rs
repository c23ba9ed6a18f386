//! Handing half of a product to another thread.
//!
//! Waking a sleeping thread takes longer than many products. Threads of this team therefore look for work for [`AWAKE`] after
//! their last piece of it, and sleep only then; whoever hands work to one that has not begun when it is needed takes it back. Inside
//! a rayon pool the pool's own threads are used, and the team's are not.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long an idle member stays awake.
const AWAKE: Duration = Duration::from_micros(100);
/// Looks at the state between looks at the clock, or between offers of the core to other threads.
const LOOKS: usize = 1 << 7;

/// Nobody's.
const IDLE: u8 = 0;
/// Somebody prepares or takes back work.
const CLAIMED: u8 = 1;
/// There is work.
const READY: u8 = 2;
/// The member has taken it.
const TAKEN: u8 = 3;
/// The work is done.
const DONE: u8 = 4;

/// Threads that products outside of a rayon pool may use: as many as the machine runs at once.
pub(crate) fn width() -> usize {
    static WIDTH: OnceLock<usize> = OnceLock::new();
    *WIDTH.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Runs both, at the same time where another thread is free.
pub(crate) fn join(left: impl FnOnce() + Send, right: impl FnOnce() + Send) {
    if rayon::current_thread_index().is_some() {
        rayon::join(left, right);
        return;
    }
    let free = |member: &&Member| member.state.compare_exchange(IDLE, CLAIMED, SeqCst, SeqCst).is_ok();
    match team().iter().find(free) {
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

/// A piece of work: a function and its argument.
type Call = (unsafe fn(*mut ()), *mut ());

/// What a member and those who give it work share.
struct Shared {
    state: AtomicU8,
    asleep: AtomicBool,
    call: UnsafeCell<Option<Call>>,
}

// SAFETY: `call` is written by whoever has moved the state from IDLE to CLAIMED, and read by the member after it has moved it
// from READY to TAKEN.
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

/// A closure for another thread, and how it ended.
struct Piece<F> {
    work: Option<F>,
    panic: Option<Box<dyn Any + Send>>,
}

/// # Safety
/// `piece` points to a `Piece<F>` that nobody else uses during the call.
unsafe fn run<F: FnOnce()>(piece: *mut ()) {
    // SAFETY: the caller's.
    let piece = unsafe { &mut *piece.cast::<Piece<F>>() };
    if let Some(work) = piece.work.take() {
        piece.panic = catch_unwind(AssertUnwindSafe(work)).err();
    }
}

impl Member {
    fn start(number: usize) -> Option<Self> {
        let (state, asleep, call) = (AtomicU8::new(IDLE), AtomicBool::new(false), UnsafeCell::new(None));
        let shared: &'static Shared = Box::leak(Box::new(Shared { state, asleep, call }));
        let name = format!("structmat-{number}");
        let handle = thread::Builder::new().name(name).spawn(|| shared.serve()).ok()?;
        Some(Self { shared, thread: handle.thread().clone() })
    }

    /// Runs `left` here and `right` there. The state is CLAIMED by the caller.
    fn join<F: FnOnce() + Send>(&self, left: impl FnOnce() + Send, right: F) {
        let mut piece = Piece { work: Some(right), panic: None };
        let pointer: *mut Piece<F> = &mut piece;
        // SAFETY: the state is CLAIMED, so the member does not look at the call.
        unsafe { *self.call.get() = Some((run::<F>, pointer.cast())) };
        self.state.store(READY, SeqCst);
        if self.asleep.load(SeqCst) {
            self.thread.unpark();
        }
        // Whatever happens in `left`, the piece stays until the member has let go of it.
        let panic = catch_unwind(AssertUnwindSafe(left)).err();
        if self.state.compare_exchange(READY, CLAIMED, SeqCst, SeqCst).is_ok() {
            self.state.store(IDLE, SeqCst);
            if panic.is_none() {
                // SAFETY: the work was taken back, so that nobody else uses the piece.
                unsafe { run::<F>(pointer.cast()) };
            }
        } else {
            let mut looks = 0usize;
            while self.state.load(SeqCst) != DONE {
                looks += 1;
                if looks.is_multiple_of(LOOKS) { thread::yield_now() } else { spin_loop() }
            }
            self.state.store(IDLE, SeqCst);
        }
        // SAFETY: the member has let go of the piece.
        let other = unsafe { (*pointer).panic.take() };
        if let Some(panic) = panic.or(other) {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    /// The life of a member.
    fn serve(&self) {
        let (mut since, mut looks) = (Instant::now(), 0usize);
        loop {
            if self.state.compare_exchange(READY, TAKEN, SeqCst, SeqCst).is_ok() {
                // SAFETY: the state was READY, so the call is complete; its piece lives until the state is DONE.
                unsafe {
                    if let Some((function, piece)) = (*self.call.get()).take() {
                        function(piece);
                    }
                }
                self.state.store(DONE, SeqCst);
                (since, looks) = (Instant::now(), 0);
                continue;
            }
            spin_loop();
            looks += 1;
            if looks.is_multiple_of(LOOKS) && since.elapsed() > AWAKE {
                self.asleep.store(true, SeqCst);
                // Who makes it READY after this look sees `asleep`, and wakes the member.
                if self.state.load(SeqCst) != READY {
                    thread::park();
                }
                self.asleep.store(false, SeqCst);
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

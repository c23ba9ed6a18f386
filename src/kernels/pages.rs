//! Large pages that several vectors share.
//!
//! A stream from memory waits for the translation of each small page's address: products with weights that do not fill a large page take
//! up to a third longer where each lies by itself on small ones.

use memmap2::{Advice, MmapMut, MmapRaw};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a large page of the processors that most machines have. A stream over large pages waits for a few hundred times fewer translations of
/// addresses.
pub(super) const LARGE: usize = 2 << 20;

/// Bytes of a small page: what is smaller needs few translations anyway.
pub(super) const SMALL: usize = 4096;

/// All pages that are shared. Of those without a vector one is kept, so that matrices that are made and dropped in turn find it.
static PAGES: Mutex<Vec<Page>> = Mutex::new(Vec::new());

fn pages() -> MutexGuard<'static, Vec<Page>> {
    PAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A large page, and which of its bytes are free: ranges in order that do not touch.
struct Page {
    map: MmapRaw,
    /// Where the page begins in its mapping.
    offset: usize,
    free: Vec<Range<usize>>,
}

impl Page {
    /// `None` where the system has no memory or no large pages.
    fn new() -> Option<Self> {
        // Systems that do not align mappings by themselves get one that holds an aligned page.
        [LARGE, 2 * LARGE].into_iter().find_map(|bytes| {
            let map = MmapMut::map_anon(bytes).ok()?;
            let offset = map.as_ptr().align_offset(LARGE);
            if offset + LARGE > bytes {
                return None;
            }
            map.advise_range(Advice::HugePage, offset, LARGE).ok()?;
            let mut page = Self { map: map.into(), offset, free: Vec::new() };
            page.give(0..LARGE);
            Some(page)
        })
    }

    fn start(&self) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(self.offset)
    }

    /// Takes `bytes` that are free.
    fn take(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        let at = self.free.iter().position(|free| free.len() >= bytes)?;
        let start = self.free[at].start;
        self.free[at].start += bytes;
        if self.free[at].is_empty() {
            self.free.remove(at);
        }
        NonNull::new(self.start().wrapping_add(start))
    }

    /// Gives back what was taken.
    fn give(&mut self, Range { start, end }: Range<usize>) {
        let at = self.free.partition_point(|free| free.start < start);
        self.free.insert(at, start..end);
        if self.free.get(at + 1).is_some_and(|next| next.start == end) {
            self.free[at].end = self.free.remove(at + 1).end;
        }
        if at > 0 && self.free[at - 1].end == start {
            self.free[at - 1].end = self.free.remove(at).end;
        }
    }

    fn is_free(&self) -> bool {
        self.free.first() == Some(&(0..LARGE))
    }
}

/// Some bytes of a large page. They start on a cache line as long as all shares are whole lines.
pub(super) struct Share {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the bytes are this share's own, and plain.
unsafe impl Send for Share {}
// SAFETY: as above.
unsafe impl Sync for Share {}

impl Share {
    /// Zeros; `None` where the system has no large pages. `bytes` are at most [`LARGE`], and not 0.
    pub(super) fn zeroed(bytes: usize) -> Option<Self> {
        let mut pages = pages();
        let start = match pages.iter_mut().find_map(|page| page.take(bytes)) {
            Some(start) => start,
            None => {
                pages.push(Page::new()?);
                pages.last_mut()?.take(bytes)?
            }
        };
        drop(pages);
        // SAFETY: the bytes lie in a mapping that stays while they are taken, and are nobody else's.
        unsafe { start.write_bytes(0, bytes) };
        Some(Self { start, bytes })
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: they were written by `zeroed`, and are this share's own.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    #[inline]
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut pages = pages();
        let from = |page: &Page| self.start.addr().get().wrapping_sub(page.start().addr());
        let Some(at) = pages.iter().position(|page| from(page) < LARGE) else { return };
        let start = from(&pages[at]);
        pages[at].give(start..start + self.bytes);
        if pages[at].is_free() && pages.iter().filter(|page| page.is_free()).count() > 1 {
            pages.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_gives_what_is_free_and_takes_it_back_in_any_order() {
        let Some(mut page) = Page::new() else { return };
        let at = |start: NonNull<u8>, page: &Page| start.addr().get() - page.start().addr();
        let sizes = [64, 4096, LARGE / 2, 128, LARGE / 4];
        let mut taken: Vec<_> = sizes
            .iter()
            .map(|&bytes| {
                let start = at(page.take(bytes).unwrap(), &page);
                start..start + bytes
            })
            .collect();
        assert!(taken.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(page.take(LARGE / 2).is_none());
        for k in [3, 0, 1, 0, 0] {
            page.give(taken.remove(k % taken.len()));
            assert!(page.free.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
        assert!(page.is_free());
        assert_eq!(at(page.take(LARGE).unwrap(), &page), 0);
        assert!(page.take(64).is_none());
    }

    #[test]
    fn shares_are_zeroed_and_their_own_from_any_thread() {
        std::thread::scope(|scope| {
            for thread in 1..=3u8 {
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    for turn in 0..60 {
                        let bytes = 64 * (1 + (turn * 7919 + usize::from(thread) * 31) % 6000);
                        let Some(mut share) = Share::zeroed(bytes) else { return };
                        assert!(share.bytes().len() == bytes && share.bytes().iter().all(|byte| *byte == 0));
                        assert!(share.start.addr().get().is_multiple_of(64));
                        share.bytes_mut().fill(thread);
                        kept.push(share);
                        if turn % 3 == 2 {
                            kept.swap_remove(turn % kept.len());
                        }
                        assert!(kept.iter().all(|share| share.bytes().iter().all(|byte| *byte == thread)));
                    }
                });
            }
        });
    }
}

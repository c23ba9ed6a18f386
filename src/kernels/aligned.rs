//! Memory that starts on a cache line.

#[cfg(target_os = "linux")]
use super::pages::{LARGE, SMALL, Share};
use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// One cache line; also the widest vector.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zeroed memory that starts on a cache line, and is a multiple of one.
enum Memory {
    Heap(Vec<Line>),
    /// On a large page with others.
    #[cfg(target_os = "linux")]
    Shared(Share),
    /// On pages of its own, large ones where the machine has them.
    #[cfg(target_os = "linux")]
    Pages(memmap2::MmapMut),
}

impl Memory {
    fn zeroed(lines: usize) -> Self {
        #[cfg(target_os = "linux")]
        if let Some(memory) = lines.checked_mul(size_of::<Line>()).and_then(Self::on_large_pages) {
            return memory;
        }
        Self::Heap(vec![Line::zeroed(); lines])
    }

    /// At least so many bytes, where they are worth a large page or a part of one and the system grants it.
    #[cfg(target_os = "linux")]
    fn on_large_pages(bytes: usize) -> Option<Self> {
        // In tests of the kernels small vectors lie by themselves, so that tools see what reads beyond them.
        match bytes {
            LARGE.. => own_pages(bytes).map(Self::Pages),
            SMALL.. if !cfg!(test) => Share::zeroed(bytes).map(Self::Shared),
            _ => None,
        }
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(lines) => bytemuck::cast_slice(lines),
            #[cfg(target_os = "linux")]
            Self::Shared(share) => share.bytes(),
            #[cfg(target_os = "linux")]
            Self::Pages(pages) => pages,
        }
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(lines) => bytemuck::cast_slice_mut(lines),
            #[cfg(target_os = "linux")]
            Self::Shared(share) => share.bytes_mut(),
            #[cfg(target_os = "linux")]
            Self::Pages(pages) => pages,
        }
    }
}

/// At least so many bytes. A rest of less than half a large page lies on small ones, which take no memory before they are used.
#[cfg(target_os = "linux")]
fn own_pages(bytes: usize) -> Option<memmap2::MmapMut> {
    // Mappings of whole pages begin at one.
    let pages = memmap2::MmapMut::map_anon(bytes.checked_next_multiple_of(LARGE)?).ok()?;
    pages.advise_range(memmap2::Advice::HugePage, 0, (bytes + LARGE / 2) / LARGE * LARGE).ok()?;
    Some(pages)
}

/// A fixed-length vector of plain numbers that starts at a 64-byte boundary and is padded with zeros to one. Those of 4 KiB or more lie on large
/// pages of 2 MiB where the system has them (Linux): long ones on their own, shorter ones together on one, which is taken with the first of them.
pub struct AlignedVec<T> {
    memory: Memory,
    len: usize,
    kind: PhantomData<T>,
}

impl<T> Clone for AlignedVec<T> {
    fn clone(&self) -> Self {
        let bytes = self.len * size_of::<T>();
        let mut memory = Memory::zeroed(bytes.div_ceil(size_of::<Line>()));
        memory.bytes_mut()[..bytes].copy_from_slice(&self.memory.bytes()[..bytes]);
        Self { memory, ..*self }
    }
}

impl<T: Pod> AlignedVec<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        Self { memory: Memory::zeroed(lines), len, kind: PhantomData }
    }

    /// A copy of `values`.
    pub fn from_slice(values: &[T]) -> Self {
        let mut vec = Self::zeroed(values.len());
        vec.copy_from_slice(values);
        vec
    }

    /// `len` values computed from their index.
    pub fn from_fn(len: usize, value: impl FnMut(usize) -> T) -> Self {
        let mut vec = Self::zeroed(len);
        vec.iter_mut().zip((0..len).map(value)).for_each(|(slot, value)| *slot = value);
        vec
    }
}

impl<T: Pod> Deref for AlignedVec<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(self.memory.bytes())[..self.len]
    }
}

impl<T: Pod> DerefMut for AlignedVec<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(self.memory.bytes_mut())[..self.len]
    }
}

impl<T> Default for AlignedVec<T> {
    fn default() -> Self {
        Self { memory: Memory::Heap(Vec::new()), len: 0, kind: PhantomData }
    }
}

impl<T> std::fmt::Debug for AlignedVec<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} x {}]", self.len, std::any::type_name::<T>())
    }
}

impl<T: Pod + PartialEq> PartialEq for AlignedVec<T> {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On the heap, and on pages.
    #[test]
    fn vectors_of_any_length_are_aligned_and_equal_their_clones() {
        for len in [0, 1, 15, 16, 17, (2 << 20) / 4 - 1, (2 << 20) / 4 + 3] {
            let mut vec = AlignedVec::from_fn(len, |i| i as f32);
            assert!(vec.len() == len && vec.as_ptr().addr().is_multiple_of(64));
            assert!(vec.iter().enumerate().all(|(i, v)| *v == i as f32));
            let copy = vec.clone();
            assert!(copy == vec);
            if let Some(last) = vec.last_mut() {
                *last = -1.0;
                assert!(copy != vec);
            }
        }
        assert!(AlignedVec::<f64>::default().is_empty());
    }
}

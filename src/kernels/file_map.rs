//! Memory-mapped files.

use crate::error::{Error, Result};
use memmap2::Mmap;
use std::path::Path;

/// Maps a file read-only. An empty file is refused: it holds nothing, and mapping it fails on some systems.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() || metadata.len() == 0 {
        let reason = if metadata.is_file() { "the file is empty" } else { "not a regular file" };
        return Err(Error::File { path: path.to_owned(), reason: reason.to_owned() });
    }
    // SAFETY: the map is read-only, and every value read from it is copied out and validated. As with any mapped file,
    // another process that truncates it meanwhile can end this one with SIGBUS; the documentation of `io` says so.
    unsafe { Mmap::map(&file) }.map_err(io)
}

use crate::error::{Error, Result};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file that is written and synced, but not yet in its place; dropped, it vanishes.
#[derive(Debug)]
pub struct Staged {
    file: NamedTempFile,
    path: PathBuf,
}

impl Staged {
    /// Writes `pieces`, one after the other, to a temporary file beside `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written, or `path` is a folder.
    pub fn new<'b>(path: impl AsRef<Path>, pieces: impl IntoIterator<Item = &'b [u8]>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        match write_beside(&path, pieces) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// Puts the file in its place, over what stands there.
    ///
    /// # Errors
    /// [`Error::Io`]; what stood there is then untouched.
    pub fn commit(self) -> Result<()> {
        let Self { file, path } = self;
        file.persist(&path).map_err(|error| Error::Io { path, source: error.error })?;
        Ok(())
    }
}

fn write_beside<'b>(
    path: &Path,
    pieces: impl IntoIterator<Item = &'b [u8]>,
) -> std::io::Result<NamedTempFile> {
    if path.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".structmat-");
    // A new file as others make it: readable as the umask says, not by its owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder)?;
    let mut out = BufWriter::with_capacity(1 << 20, file.as_file());
    for piece in pieces {
        out.write_all(piece)?;
    }
    out.flush()?;
    drop(out);
    file.as_file().sync_all()?;
    Ok(file)
}

//! Backing files: which files an image stands on.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use disk::{ImageFormat, OpenError};

use crate::header::{Header, MAX_HEADER_BYTES};

/// Most files one above the other.
pub const MAX_CHAIN: usize = 16;

/// What an image may make us open. Its header is the word of whoever made it, and
/// may name any file of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Nothing: an image with a backing file is refused.
    #[default]
    Deny,
    /// What it names, to read.
    Allow,
}

/// One file of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainLink {
    /// The file.
    pub path: PathBuf,
    /// Raw or qcow2.
    pub format: ImageFormat,
    /// Its header, if it is qcow2.
    pub header: Option<Header>,
}

/// Where the files of a chain come from.
pub(crate) enum Files {
    /// They are opened here, to be read.
    Named,
    /// Somebody has opened them, in the order of the chain.
    Given(std::vec::IntoIter<File>),
}

impl Files {
    fn next(&mut self, path: &Path) -> Result<File, OpenError> {
        match self {
            Files::Named => File::open(path).map_err(|e| OpenError::open(path, e)),
            Files::Given(files) => {
                files.next().ok_or_else(|| OpenError::refused(path, "it was not opened".to_string()))
            }
        }
    }
}

/// One file of a chain, open at least to be read.
pub(crate) struct OpenLink {
    pub link: ChainLink,
    pub file: File,
}

/// The header of an image that is to be read.
///
/// # Errors
/// When it cannot be opened, or is refused.
pub fn header(path: &Path) -> Result<Header, OpenError> {
    let file = File::open(path).map_err(|e| OpenError::open(path, e))?;
    judged_header(path, &file, false)
}

/// Read and judge a file's header.
fn judged_header(path: &Path, file: &File, write: bool) -> Result<Header, OpenError> {
    let fail = |e| OpenError::open(path, e);
    let len = file.metadata().map_err(fail)?.len();
    let mut start = vec![0; len.min(MAX_HEADER_BYTES as u64) as usize];
    // Not where the descriptor stands: others may share it.
    file.read_exact_at(&mut start, 0).map_err(fail)?;
    Header::parse(&start, len, write).map_err(|e| OpenError::refused(path, e.to_string()))
}

/// The file below one whose header names it.
fn below(link: &ChainLink) -> Result<Option<(PathBuf, Option<ImageFormat>)>, OpenError> {
    let Some((name, format)) = link.header.as_ref().and_then(|h| h.backing.as_ref()) else { return Ok(None) };
    if name.starts_with("json:") || name.split('/').next().is_some_and(|first| first.contains(':')) {
        let why =
            format!("its backing file \"{name}\" is no path; rebase it with: qemu-img rebase -u -b PATH");
        return Err(OpenError::refused(&link.path, why));
    }
    let directory = link.path.parent().unwrap_or(Path::new(""));
    let format = match format.as_deref() {
        None => None,
        Some("raw") => Some(ImageFormat::Raw),
        Some("qcow2") => Some(ImageFormat::Qcow2),
        Some(other) => {
            let why = format!("its backing file has format {other}, raw and qcow2 are read; convert it");
            return Err(OpenError::refused(&link.path, why));
        }
    };
    Ok(Some((directory.join(name), format)))
}

/// All files of the image at `path`, itself first, with their headers judged.
///
/// # Errors
/// A header that is refused, a backing file where the gate denies it, one that is
/// not there, a loop, more than [`MAX_CHAIN`] files.
pub fn backing_chain(path: &Path, write: bool, gate: Backing) -> Result<Vec<ChainLink>, OpenError> {
    Ok(open_chain(path, write, gate, &mut Files::Named)?.into_iter().map(|l| l.link).collect())
}

/// As [`backing_chain`], with the files open.
pub(crate) fn open_chain(
    path: &Path,
    write: bool,
    gate: Backing,
    files: &mut Files,
) -> Result<Vec<OpenLink>, OpenError> {
    let mut chain = Vec::new();
    let mut seen = Vec::new();
    let mut next = Some((path.to_path_buf(), Some(ImageFormat::Qcow2)));
    while let Some((at, format)) = next {
        if chain.len() == MAX_CHAIN {
            let why = format!("it stands on more than {MAX_CHAIN} files; flatten it with: qemu-img convert");
            return Err(OpenError::refused(path, why));
        }
        let file = files.next(&at)?;
        let identity = file.metadata().map(|m| (m.dev(), m.ino())).map_err(|e| OpenError::open(&at, e))?;
        if seen.contains(&identity) {
            let why = format!("its backing files form a loop at {}; restore a copy", at.display());
            return Err(OpenError::refused(path, why));
        }
        seen.push(identity);
        let format = match format {
            Some(format) => format,
            None => disk::probe_open(&at, &file)?,
        };
        let header = match format {
            ImageFormat::Qcow2 => Some(judged_header(&at, &file, write && chain.is_empty())?),
            ImageFormat::Raw => None,
            other => {
                let why = format!("it is {}; raw and qcow2 are read as backing files", other.name());
                return Err(OpenError::refused(&at, why));
            }
        };
        let link = ChainLink { path: at, format, header };
        next = below(&link)?;
        if let Some((name, _)) = next.as_ref().filter(|_| gate == Backing::Deny) {
            let why = format!(
                "it stands on {}, which is opened only if you say so; add backing=on if you trust the image",
                name.display()
            );
            return Err(OpenError::refused(path, why));
        }
        chain.push(OpenLink { link, file });
    }
    Ok(chain)
}

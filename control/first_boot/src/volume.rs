//! The FAT volume.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use crate::identity::IdentityError;

/// What cloud-init looks for.
const LABEL: [u8; 11] = *b"cidata     ";
/// Room beside the files: tables, directories, the rest of each last cluster.
const ROOM: u64 = 1 << 20;

/// A file's path on the volume, and its content.
pub(crate) type Content = (&'static str, Vec<u8>);

/// Why there is no seed disk.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// What is to be told is wrong.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The archive of files.
    #[error("cannot pack the files for the guest: {0}; shorten their paths")]
    Archive(io::Error),
    /// The volume.
    #[error("cannot make the seed disk: {0}; report it")]
    Volume(io::Error),
}

/// The volume's bytes.
pub(crate) fn write(contents: &[Content]) -> Result<Vec<u8>, SeedError> {
    let held: u64 = contents.iter().map(|c| c.1.len() as u64).sum();
    // FAT needs a part of itself for its tables: an eighth is plenty.
    let size = (held + held / 8 + ROOM).next_multiple_of(1 << 20);
    let mut volume = Cursor::new(vec![0; size as usize]);
    fill(&mut volume, contents).map_err(SeedError::Volume)?;
    Ok(volume.into_inner())
}

fn fill(volume: &mut Cursor<Vec<u8>>, contents: &[Content]) -> io::Result<()> {
    fatfs::format_volume(&mut *volume, FormatVolumeOptions::new().volume_label(LABEL))?;
    let fs = FileSystem::new(volume, FsOptions::new())?;
    for (path, content) in contents {
        let mut directory = fs.root_dir();
        let mut name = *path;
        while let Some((first, rest)) = name.split_once('/') {
            directory = directory.create_dir(first)?;
            name = rest;
        }
        let mut file = directory.create_file(name)?;
        file.truncate()?;
        file.write_all(content)?;
    }
    fs.unmount()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_written_is_read_back() {
        let big: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
        let contents =
            [("meta-data", b"{}".to_vec()), ("strata/authorized_keys", big), ("strata/x", Vec::new())];
        let bytes = write(&contents).unwrap();
        // Boot sector signature; a fixed disk that Linux and blkid know as FAT.
        assert_eq!((bytes[510], bytes[511]), (0x55, 0xaa));
        let fs = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label(), "cidata");
        for (path, content) in &contents {
            let mut read = Vec::new();
            fs.root_dir().open_file(path).unwrap().read_to_end(&mut read).unwrap();
            assert!(read == *content, "{path}");
        }
        let names: Vec<_> = fs.root_dir().iter().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["meta-data", "strata"]);
    }
}

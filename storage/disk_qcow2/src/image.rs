//! An opened image.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use disk::{Access, CacheMode, Disk, DiskError, Geometry, ImageFormat, ImageLock, OpenError};
use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, ShallowMapping, Storage, StorageExt,
    StorageOpenOptions,
};

use crate::chain::{Backing, Files, OpenLink, open_chain};
use crate::header::HeaderError;
use crate::ordered::Ordered;
use crate::reader::read_chain;
use crate::survey::survey;
use crate::tables::{Tables, pieces};

/// The unit guests know.
const SECTOR: u32 = 512;

/// How an image is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qcow2Options {
    /// Refuse every change.
    pub read_only: bool,
    /// What the host caches.
    pub cache: CacheMode,
    /// Whether the files it stands on may be opened.
    pub backing: Backing,
}

type Format = FormatAccess<Ordered>;

/// A disk in a qcow2 image.
pub struct Qcow2Disk {
    // Static configuration.
    read_only: bool,
    cache: CacheMode,
    geometry: Geometry,
    /// Writing to some clusters frees them: they are compressed, or a snapshot's too.
    shares: bool,
    /// Writing to zeroes may free clusters: some have room kept for them.
    spares: bool,
    // Runtime glue.
    /// Shared by accesses; alone for what frees clusters, until the file says so too: the
    /// library may make a freed cluster a table, which it writes before the file has
    /// forgotten what was there.
    image: RwLock<Format>,
    /// Of an image that is written to.
    tables: Option<Tables>,
    /// Clusters were freed since the file was synced: what named them may still be on the
    /// medium. Set by who has the image alone.
    freed: AtomicBool,
    /// Since the file was synced writes took clusters of which they filled a part; the rest
    /// was copied, and is in the host's cache alone.
    copied: AtomicBool,
    /// Shared by those writes; alone while tables are written.
    copies: RwLock<()>,
    /// Held while what was copied is brought to the medium. Innermost.
    settling: Mutex<()>,
    /// One a file, the image's own last.
    locks: Vec<ImageLock>,
}

/// The library's error on opening.
fn refused(path: &Path, e: &io::Error) -> OpenError {
    OpenError::refused(path, format!("it cannot be opened: {e}; check it with: qemu-img check"))
}

/// A link's file, for the library: opened again as it is used, or as it was given.
fn storage(open: &OpenLink, given: bool, write: bool, direct: bool) -> Result<File, OpenError> {
    let path = &open.link.path;
    let options = StorageOpenOptions::new().write(write).direct(direct).filename(path);
    let file = if given {
        open.file.try_clone().and_then(|file| File::from_open_file(file, options))
    } else {
        File::open(options)
    };
    file.map_err(|e| OpenError::open(path, e))
}

fn open_link(
    open: &OpenLink,
    file: Ordered,
    below: Option<Arc<Format>>,
    write: bool,
) -> Result<Format, OpenError> {
    let gate = DenyImplicitOpenGate::default();
    let fail = |e: io::Error| refused(&open.link.path, &e);
    if open.link.format == ImageFormat::Raw {
        return Ok(FormatAccess::new(Raw::builder(file).open(gate).map_err(fail)?));
    }
    let builder = Qcow2::<Ordered, Arc<Format>>::builder(file).write(write).backing(below).data_file(None);
    Ok(FormatAccess::new(builder.open(gate).map_err(fail)?))
}

/// The first of a chain that the library does not read, and what it needs.
fn only_read(chain: &[OpenLink]) -> Option<(&Path, &'static str)> {
    chain.iter().find_map(|open| Some((&*open.link.path, open.link.header.as_ref()?.only_read()?)))
}

/// Open an image with the files it stands on as a machine's disk, by whatever reads it.
///
/// # Errors
/// [`OpenError`].
pub fn open(path: &Path, options: Qcow2Options) -> Result<Arc<dyn Disk>, OpenError> {
    open_from(path, Files::Named, options)
}

/// [`open`] an image of files that somebody else has opened, in the order of
/// [`backing_chain`](crate::backing_chain): all to be read, the first to be written too
/// unless the options say otherwise, and none past the host's cache.
///
/// # Errors
/// [`OpenError`]; for [`CacheMode::Direct`] too.
pub fn open_given(
    path: &Path,
    files: Vec<fs::File>,
    options: Qcow2Options,
) -> Result<Arc<dyn Disk>, OpenError> {
    if options.cache == CacheMode::Direct {
        let why = "a qcow2 image that comes while the machine runs is not opened with cache=direct; leave it \
                   out, or give the image when the machine starts";
        return Err(OpenError::refused(path, why.to_string()));
    }
    open_from(path, Files::Given(files.into_iter()), options)
}

fn open_from(path: &Path, mut files: Files, options: Qcow2Options) -> Result<Arc<dyn Disk>, OpenError> {
    let given = matches!(files, Files::Given(_));
    let chain = open_chain(path, !options.read_only, options.backing, &mut files)?;
    if options.read_only && only_read(&chain).is_some() {
        return Ok(Arc::from(read_chain(path, chain, None)?));
    }
    Ok(Arc::new(Qcow2Disk::of_chain(path, chain, given, options)?))
}

impl Qcow2Disk {
    /// Open an image with the files it stands on, and lock all of them.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, options: Qcow2Options) -> Result<Self, OpenError> {
        let chain = open_chain(path, !options.read_only, options.backing, &mut Files::Named)?;
        Self::of_chain(path, chain, false, options)
    }

    fn of_chain(
        path: &Path,
        chain: Vec<OpenLink>,
        given: bool,
        options: Qcow2Options,
    ) -> Result<Self, OpenError> {
        let Qcow2Options { read_only, cache, backing: _ } = options;
        if let Some((link, feature)) = only_read(&chain) {
            return Err(OpenError::refused(link, HeaderError::OnlyRead(feature).to_string()));
        }
        let header = chain.first().and_then(|open| open.link.header.clone());
        let mut locks = Vec::new();
        let mut below = None;
        let (mut shares, mut spares, mut tables) = (false, false, None);
        for (depth, open) in chain.into_iter().enumerate().rev() {
            let write = depth == 0 && !read_only;
            let access = if write { Access::Write } else { Access::Read };
            let locked = open.file.try_clone().map_err(|e| OpenError::open(&open.link.path, e))?;
            locks.push(ImageLock::on(&open.link.path, locked, access)?);
            if let Some(header) = open.link.header.as_ref().filter(|_| write) {
                let writable = || match given {
                    true => open.file.try_clone(),
                    false => fs::OpenOptions::new().write(true).open(&open.link.path),
                };
                let found = survey(&open.file, header, writable)
                    .map_err(|e| OpenError::refused(&open.link.path, e.to_string()))?;
                let file = open.file.try_clone().map_err(|e| OpenError::open(&open.link.path, e))?;
                (shares, spares) = (found.shares, found.spares);
                tables = Some(Tables::new(file, header.layout, found.l2));
            }
            let file = storage(&open, given, write, cache == CacheMode::Direct)?;
            let l1 = open.link.header.as_ref().filter(|_| write && cache != CacheMode::Unsafe).map(|h| h.l1);
            let file = Ordered::new(file, l1.map_or(0..0, |l1| l1.at..l1.at + 8 * l1.entries));
            below = Some(Arc::new(open_link(&open, file, below.take(), write)?));
        }
        let image =
            below.and_then(Arc::into_inner).ok_or_else(|| OpenError::refused(path, "it has no parts"))?;
        let bits = header.map_or(16, |h| h.layout.cluster_bits);
        let size = image.size();
        if size % u64::from(SECTOR) != 0 {
            return Err(OpenError::Size { path: path.to_path_buf(), size, block: SECTOR });
        }
        let cluster = 1u32 << bits;
        let geometry = Geometry {
            size,
            logical_block: SECTOR,
            physical_block: 4096.min(cluster),
            discard_unit: cluster,
        };
        Ok(Qcow2Disk {
            read_only,
            cache,
            geometry,
            shares,
            spares,
            image: RwLock::new(image),
            tables,
            freed: AtomicBool::new(false),
            copied: AtomicBool::new(false),
            copies: RwLock::new(()),
            settling: Mutex::new(()),
            locks,
        })
    }

    fn shared(&self) -> RwLockReadGuard<'_, Format> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Format> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_change(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.geometry.check(offset, len)
    }
}

/// What the library says, as a disk's error.
fn disk_error(e: io::Error) -> DiskError {
    match e.kind() {
        io::ErrorKind::InvalidData => DiskError::Damaged(e.to_string()),
        _ => e.into(),
    }
}

impl Disk for Qcow2Disk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), DiskError> {
        self.geometry.check(offset, to.len() as u64)?;
        self.shared().read(to, offset).map_err(disk_error)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), DiskError> {
        self.check_change(offset, from.len() as u64)?;
        self.write_to(offset, from).map_err(disk_error)
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        let image = self.shared();
        self.write_tables(&image).map_err(disk_error)?;
        match self.cache {
            CacheMode::Unsafe => Ok(()),
            _ => self.sync(&image).map_err(disk_error),
        }
    }

    fn room(&self) -> Option<u64> {
        self.locks.last()?.room()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        match self.by_table(offset, len, false, Format::discard_to_any) {
            // Version 2 cannot tell a hole from what is below.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other.map_err(disk_error),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        let done = if unmap { self.zero(offset, len) } else { self.zero_in_place(offset, len) };
        match done {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => self.zero_by_writing(offset, len),
            other => other.map_err(disk_error),
        }
    }
}

impl Qcow2Disk {
    fn check_tables(&self, offset: u64, len: u64) -> io::Result<()> {
        self.tables.as_ref().map_or(Ok(()), |tables| tables.check(offset, len))
    }

    /// Whether any part is kept in a way that `is` so.
    fn any(
        image: &Format,
        offset: u64,
        len: u64,
        is: impl Fn(&ShallowMapping<'_, Ordered>) -> bool,
    ) -> io::Result<bool> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (mapping, n) = image.get_shallow_mapping(at, end - at)?;
            if is(&mapping) {
                return Ok(true);
            }
            if n == 0 {
                break;
            }
            at += n;
        }
        Ok(false)
    }

    /// Whether writing there may free clusters.
    fn frees(&self, offset: u64, len: u64) -> io::Result<bool> {
        if !self.shares && !self.spares {
            return Ok(false);
        }
        let freed = |mapping: &ShallowMapping<'_, Ordered>| match mapping {
            ShallowMapping::Special { .. } | ShallowMapping::Raw { writable: false, .. } => self.shares,
            ShallowMapping::Zero { explicit: true, .. } => self.spares,
            _ => false,
        };
        Self::any(&self.shared(), offset, len, freed)
    }

    /// Whether the image itself says anything of what is there: its tables do.
    fn is_mapped(image: &Format, offset: u64, len: u64) -> io::Result<bool> {
        let mapped = |mapping: &ShallowMapping<'_, Ordered>| {
            !matches!(mapping, ShallowMapping::Zero { explicit: false, .. } | ShallowMapping::Indirect { .. })
        };
        Self::any(image, offset, len, mapped)
    }

    /// Whether all of it is data that are written over where they are.
    fn is_in_place(image: &Format, offset: u64, len: u64) -> io::Result<bool> {
        let elsewhere = |mapping: &ShallowMapping<'_, Ordered>| {
            !matches!(mapping, ShallowMapping::Raw { writable: true, .. })
        };
        Ok(!Self::any(image, offset, len, elsewhere)?)
    }

    fn sync(&self, image: &Format) -> io::Result<()> {
        image.sync()?;
        self.freed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Write tables to the file, behind what they name and writes did not fill: the medium may
    /// have them at once, and before that is there a guest would lose what it had not touched.
    fn write_tables(&self, image: &Format) -> io::Result<()> {
        let settle_copies = || {
            // Who finds that there is nothing to do knows that another's sync has ended.
            let _settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
            if self.copied.swap(false, Ordering::AcqRel) {
                image.sync().inspect_err(|_| self.copied.store(true, Ordering::Release))?;
            }
            Ok::<_, io::Error>(())
        };
        // First beside writes, then what they left meanwhile.
        settle_copies()?;
        let _alone = self.copies.write().unwrap_or_else(PoisonError::into_inner);
        settle_copies()?;
        image.flush()
    }

    /// Write, where parts of clusters that are taken for it may be copied.
    fn write_and_copy(&self, image: &Format, offset: u64, from: &[u8]) -> io::Result<()> {
        let _shared = self.copies.read().unwrap_or_else(PoisonError::into_inner);
        let written = image.write(from, offset);
        self.copied.store(self.cache != CacheMode::Unsafe, Ordering::Release);
        written
    }

    /// Whether parts of clusters are meant, not whole ones.
    fn is_part(&self, offset: u64, len: u64) -> bool {
        let cluster = u64::from(self.geometry.discard_unit);
        (offset % cluster, len % cluster) != (0, 0)
    }

    /// A part of the disk as its first cluster, if not all of that is meant, all whole ones,
    /// and the last.
    fn by_clusters(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (cluster, end) = (u64::from(self.geometry.discard_unit), offset + len);
        let first = offset.next_multiple_of(cluster).min(end);
        let last = (end / cluster * cluster).max(first);
        let parts = [(offset, first), (first, last), (last, end)].into_iter();
        parts.filter(|(at, end)| at < end).map(|(at, end)| (at, end - at))
    }

    /// Before clusters are freed, with the image alone.
    fn frees_now(&self) {
        self.freed.store(self.cache != CacheMode::Unsafe, Ordering::Relaxed);
    }

    /// Before clusters are taken: those that were freed are so on the medium too. A host that
    /// ended between would else leave both what named one of them and what names it now.
    fn settle(&self, image: &Format) -> io::Result<()> {
        if self.freed.load(Ordering::Relaxed) {
            self.write_tables(image)?;
            self.sync(image)?;
        }
        Ok(())
    }

    fn write_to(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let len = from.len() as u64;
        if self.frees(offset, len)? {
            // The medium gets each sector of a table as a whole, whatever is freed and taken
            // within.
            let sector = u64::from(SECTOR / 8) * u64::from(self.geometry.discard_unit);
            let mut rest = from;
            for (at, len) in self.by_clusters(offset, len).flat_map(|(at, len)| pieces(at, len, sector)) {
                let image = self.alone();
                self.settle(&image)?;
                self.frees_now();
                let piece;
                (piece, rest) = rest.split_at(len as usize);
                match self.is_part(at, len) {
                    true => self.write_and_copy(&image, at, piece)?,
                    false => image.write(piece, at)?,
                }
                self.write_tables(&image)?;
            }
        } else {
            let image = self.shared();
            let part = self.is_part(offset, len);
            let looks = self.cache != CacheMode::Unsafe && (part || self.freed.load(Ordering::Relaxed));
            let takes = looks && !Self::is_in_place(&image, offset, len)?;
            if takes {
                self.settle(&image)?;
            }
            match takes && part {
                true => self.write_and_copy(&image, offset, from)?,
                false => image.write(from, offset)?,
            }
        }
        self.check_tables(offset, len)
    }

    /// Do what may free clusters, one second-level table after the other: what the file
    /// still says of a freed one is corrected before the next table may be made of it.
    /// `writes`: also parts of clusters, to clusters that are taken for them.
    fn by_table(
        &self,
        offset: u64,
        len: u64,
        writes: bool,
        act: impl Fn(&mut Format, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(tables) = &self.tables else { return Err(io::ErrorKind::Unsupported.into()) };
        for (at, len) in tables.pieces(offset, len) {
            let mut image = self.alone();
            let part = writes && self.is_part(at, len) && !Self::is_in_place(&image, at, len)?;
            if self.shares || part || !tables.is_named(at) {
                self.settle(&image)?;
            }
            if Self::is_mapped(&image, at, len)? {
                self.frees_now();
            }
            if part {
                self.copied.store(self.cache != CacheMode::Unsafe, Ordering::Release);
            }
            act(&mut image, at, len)?;
            self.write_tables(&image)?;
            if Self::is_mapped(&image, at, len)? {
                tables.check(at, len)?;
            }
        }
        Ok(())
    }

    /// Make a part of the disk zeroes, and free what it had.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        // Whole clusters are freed, parts of others may be written: not at once.
        let mut parts = self.by_clusters(offset, len);
        parts.try_for_each(|(at, len)| self.by_table(at, len, true, Format::discard_to_zero))
    }

    /// Make a part of the disk zeroes, where data are by zeroes in their place. The library
    /// would note that they are zeroes and keep their room, which a later write may free.
    fn zero_in_place(&self, offset: u64, len: u64) -> io::Result<()> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let image = self.shared();
            let (mapping, n) = image.get_shallow_mapping(at, end - at)?;
            match mapping {
                ShallowMapping::Raw { storage, offset, writable: true, .. } => {
                    storage.write_allocated_zeroes(offset, n)?;
                }
                ShallowMapping::Zero { .. } => {}
                _ => {
                    drop(image);
                    self.zero(at, n)?;
                }
            }
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += n;
        }
        Ok(())
    }

    fn zero_by_writing(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let zeroes = vec![0; len.min(disk::BOUNCE as u64) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeroes.len() as u64);
            self.write(offset + done, &zeroes[..n as usize])?;
            done += n;
        }
        Ok(())
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        // What the guest flushed is durable already; an error here loses nothing promised.
        let _ = self.flush();
    }
}

#[cfg(test)]
#[path = "power_loss.rs"]
pub(crate) mod tests;

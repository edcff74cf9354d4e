//! ELF executables (System V ABI, "Object Files"), as far as a loader needs them.
//!
//! Read by hand: `linux-loader` and `vm-memory` want their own guest-memory type,
//! and the headers are a dozen fields.

use crate::error::{LoadError, Result};
use crate::fields::Fields;
use crate::place::Placer;

pub(crate) const MAGIC: &[u8] = b"\x7fELF";
pub(crate) const EM_386: u16 = 3;
pub(crate) const EM_ARM: u16 = 40;
pub(crate) const EM_X86_64: u16 = 62;
pub(crate) const EM_AARCH64: u16 = 183;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY (Xen public/elfnote.h): the PVH entry point.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// Program headers looked at. Kernels have a handful.
const MAX_SEGMENTS: u16 = 256;

/// One program header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    kind: u32,
    pub offset: u64,
    pub virtual_address: u64,
    pub physical_address: u64,
    pub file_size: u64,
    pub memory_size: u64,
}

/// A checked view of an ELF file for x86.
pub(crate) struct Elf<'a> {
    file: Fields<'a>,
    /// ELFCLASS64.
    pub long: bool,
    /// EM_X86_64 (else EM_386).
    pub amd64: bool,
    entry: u64,
    segments: Vec<Segment>,
}

impl<'a> Elf<'a> {
    /// Check the header and read the program headers.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let file = Fields::new("ELF kernel", bytes);
        let class = file.u8(4)?;
        let long = match class {
            1 => false,
            2 => true,
            _ => return Err(file.malformed("EI_CLASS", class.into(), "1 (32-bit) or 2 (64-bit) expected")),
        };
        let data = file.u8(5)?;
        if data != 1 {
            return Err(file.malformed("EI_DATA", data.into(), "1 (little-endian) expected"));
        }
        let kind = file.u16(16)?;
        if kind != ET_EXEC && kind != ET_DYN {
            return Err(file.malformed("e_type", kind.into(), "2 (executable) or 3 (shared) expected"));
        }
        let machine = file.u16(18)?;
        if machine != EM_386 && machine != EM_X86_64 {
            return Err(file.malformed("e_machine", machine.into(), "3 (386) or 62 (x86-64) expected"));
        }
        let (entry, table, size_at, least) = if long {
            (file.u64(24)?, file.u64(32)?, 54, 56)
        } else {
            (file.u32(24)?.into(), file.u32(28)?.into(), 42, 32)
        };
        let size = file.u16(size_at)?;
        let count = file.u16(size_at + 2)?;
        if size < least {
            return Err(file.malformed("e_phentsize", size.into(), "the size of a program header expected"));
        }
        if count == 0 || count > MAX_SEGMENTS {
            return Err(file.malformed("e_phnum", count.into(), "1 to 256 program headers expected"));
        }
        let mut segments = Vec::with_capacity(count.into());
        for i in 0..u64::from(count) {
            let at = table.checked_add(i * u64::from(size));
            let at =
                at.ok_or_else(|| file.malformed("e_phoff", table, "an offset within the file expected"))?;
            segments.push(Self::segment(&file, long, at)?);
        }
        Ok(Elf { file, long, amd64: machine == EM_X86_64, entry, segments })
    }

    fn segment(file: &Fields<'_>, long: bool, at: u64) -> Result<Segment> {
        // The header of the segment must lie within the file; check it all at once.
        file.slice(at, if long { 56 } else { 32 })?;
        Ok(if long {
            Segment {
                kind: file.u32(at)?,
                offset: file.u64(at + 8)?,
                virtual_address: file.u64(at + 16)?,
                physical_address: file.u64(at + 24)?,
                file_size: file.u64(at + 32)?,
                memory_size: file.u64(at + 40)?,
            }
        } else {
            Segment {
                kind: file.u32(at)?,
                offset: file.u32(at + 4)?.into(),
                virtual_address: file.u32(at + 8)?.into(),
                physical_address: file.u32(at + 12)?.into(),
                file_size: file.u32(at + 16)?.into(),
                memory_size: file.u32(at + 20)?.into(),
            }
        })
    }

    fn loads(&self) -> impl Iterator<Item = &Segment> + Clone {
        self.segments.iter().filter(|s| s.kind == PT_LOAD && s.memory_size > 0)
    }

    /// It asks for a dynamic linker, so it is a program.
    pub fn is_program(&self) -> bool {
        self.segments.iter().any(|s| s.kind == PT_INTERP)
    }

    /// The entry point as a physical address: `e_entry` itself when it lies in a
    /// segment's physical range, else translated from its virtual range.
    pub fn physical_entry(&self) -> Result<u64> {
        let within =
            |base: u64, s: &Segment| self.entry.checked_sub(base).filter(|into| *into < s.memory_size);
        if self.loads().any(|s| within(s.physical_address, s).is_some()) {
            return Ok(self.entry);
        }
        self.loads()
            .find_map(|s| Some((s, within(s.virtual_address, s)?)))
            .and_then(|(s, into)| s.physical_address.checked_add(into))
            .ok_or_else(|| {
                self.file.malformed("e_entry", self.entry, "an address in a loaded segment expected")
            })
    }

    /// First and first-beyond-last physical address of what is loaded.
    pub fn physical_range(&self) -> Result<(u64, u64)> {
        let mut range: Option<(u64, u64)> = None;
        for s in self.loads() {
            let end = s.physical_address.checked_add(s.memory_size).ok_or_else(|| {
                self.file.malformed(
                    "p_memsz",
                    s.memory_size,
                    "a segment below the end of the address space expected",
                )
            })?;
            let (low, high) = range.unwrap_or((s.physical_address, end));
            range = Some((low.min(s.physical_address), high.max(end)));
        }
        range.ok_or_else(|| self.file.malformed("e_phnum", 0, "at least one segment to load expected"))
    }

    /// Put every segment at its physical address. Returns the range covered.
    pub fn load(&self, placer: &mut Placer<'_>, what: &'static str) -> Result<(u64, u64)> {
        let (start, end) = self.physical_range()?;
        placer.keep_clear(what, self.loads().map(|s| (s.physical_address, s.memory_size)))?;
        placer.require_low()?;
        for s in self.loads() {
            if s.file_size > s.memory_size {
                return Err(self.file.malformed("p_filesz", s.file_size, "at most p_memsz expected"));
            }
            // Everything is checked before anything is written.
            self.file.slice(s.offset, s.file_size)?;
            placer.require_ram(what, s.physical_address, s.memory_size)?;
        }
        for s in self.loads() {
            placer.memory().store(s.physical_address, self.file.slice(s.offset, s.file_size)?)?;
            let rest = s.memory_size - s.file_size;
            placer.zero(s.physical_address + s.file_size, rest)?;
        }
        placer.record(what, start, end - start);
        Ok((start, end))
    }

    /// The PVH entry point: the note XEN_ELFNOTE_PHYS32_ENTRY.
    pub fn pvh_entry(&self) -> Result<Option<u32>> {
        for s in self.segments.iter().filter(|s| s.kind == PT_NOTE) {
            let notes = Fields::new("ELF note segment", self.file.slice(s.offset, s.file_size)?);
            let mut at = 0u64;
            while at + 12 <= s.file_size {
                let (name_len, desc_len) = (u64::from(notes.u32(at)?), u64::from(notes.u32(at + 4)?));
                let kind = notes.u32(at + 8)?;
                let desc_at = at + 12 + name_len.next_multiple_of(4);
                if kind == NOTE_PHYS32_ENTRY && notes.slice(at + 12, name_len)? == b"Xen\0" {
                    return match desc_len {
                        4 => notes.u32(desc_at).map(Some),
                        8 => {
                            let entry = notes.u64(desc_at)?;
                            let narrow = u32::try_from(entry);
                            narrow.map(Some).map_err(|_| {
                                notes.malformed("PHYS32_ENTRY", entry, "an address below 4 GiB expected")
                            })
                        }
                        _ => Err(notes.malformed("PHYS32_ENTRY size", desc_len, "4 or 8 bytes expected")),
                    };
                }
                at = desc_at + desc_len.next_multiple_of(4);
            }
        }
        Ok(None)
    }
}

/// Parse an ELF that must be 64-bit x86 code.
pub(crate) fn parse_amd64(bytes: &[u8]) -> Result<Elf<'_>> {
    let elf = Elf::parse(bytes)?;
    if elf.long && elf.amd64 {
        Ok(elf)
    } else {
        Err(LoadError::NotAKernel {
            found: "a 32-bit ELF kernel",
            remedy: "the 64-bit entry needs a kernel built for amd64",
        })
    }
}

//! Linux bzImage, boot protocol 2.06 and later (Documentation/arch/x86/boot.rst).

use x86_state::reg;

use crate::boot_params::{self, Limits};
use crate::decompress::{self, Payload};
use crate::elf;
use crate::entry;
use crate::error::{LoadError, Result};
use crate::fields::Fields;
use crate::place::{Placer, low};
use crate::{BootRequest, BootState, ImageKind, Protocol, linux64, pvh};

const WHAT: &str = "bzImage";
const BOOT_FLAG: u64 = 0x1fe;
const HEADER_MAGIC: u64 = 0x202;
const SECTOR: u64 = 512;
/// Where the 64-bit entry lies in the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// xloadflags: the 64-bit entry exists.
const XLF_KERNEL_64: u16 = 1;
const LOADED_HIGH: u8 = 1;
/// Where kernels went before they could say (protocol below 2.10).
const TRADITIONAL_ADDRESS: u64 = 0x10_0000;
/// How much more room than its file a kernel needs that does not say.
const GUESSED_EXPANSION: u64 = 4;

/// True for anything with a Linux setup header. ARM and RISC-V images and EFI
/// programs have none.
pub(crate) fn is_bzimage(bytes: &[u8]) -> bool {
    let image = Fields::new(WHAT, bytes);
    image.u16(BOOT_FLAG).is_ok_and(|f| f == 0xaa55)
        && image.slice(HEADER_MAGIC, 4).is_ok_and(|m| m == b"HdrS")
}

/// A checked setup header.
struct Setup<'a> {
    image: Fields<'a>,
    /// The protected-mode part.
    code: &'a [u8],
    has_64: bool,
    /// Where the kernel wants to be.
    address: u64,
    /// Bytes it needs there until it looks at the memory map.
    init_size: u64,
    /// Where in `code` the compressed payload lies.
    payload: Option<(u64, u64)>,
    limits: Limits,
}

impl<'a> Setup<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        let image = Fields::new(WHAT, bytes);
        let version = image.u16(0x206)?;
        if version < 0x206 {
            return Err(image.malformed(
                "boot protocol version",
                version.into(),
                "2.06 (0x206) or later is needed",
            ));
        }
        let loadflags = image.u8(0x211)?;
        if loadflags & LOADED_HIGH == 0 {
            return Err(image.malformed(
                "loadflags",
                loadflags.into(),
                "LOADED_HIGH is needed (a zImage is too old)",
            ));
        }
        let sectors = match image.u8(HEADER_START)? {
            0 => 4,
            n => u64::from(n),
        };
        let start = (sectors + 1) * SECTOR;
        let size = u64::from(image.u32(0x1f4)?) * 16;
        // Some builds round syssize up beyond the file's end.
        let have = bytes.len() as u64;
        let code = image.slice(start, size.min(size.saturating_sub(15).max(have.saturating_sub(start))))?;
        let at_least = |v, offset| if version >= v { image.u32(offset) } else { Ok(0) };
        let payload = match (at_least(0x208, 0x248)?, at_least(0x208, 0x24c)?) {
            (_, 0) => None,
            (offset, len) => Some((offset.into(), len.into())),
        };
        let (address, init_size) = if version >= 0x20a {
            (image.u64(0x258)?, image.u32(0x260)?.into())
        } else {
            (TRADITIONAL_ADDRESS, size * GUESSED_EXPANSION)
        };
        if address >= 1 << 32 {
            return Err(image.malformed("pref_address", address, "an address below 4 GiB expected"));
        }
        let xloadflags = if version >= 0x20c { image.u16(0x236)? } else { 0 };
        Ok(Setup {
            image,
            code,
            has_64: xloadflags & XLF_KERNEL_64 != 0,
            address,
            init_size: std::cmp::max(init_size, code.len() as u64),
            payload,
            limits: Limits {
                initrd_limit: u64::from(image.u32(0x22c)?) + 1,
                cmdline_max: image.u32(0x238)? as usize,
            },
        })
    }

    /// The payload's bytes, still compressed.
    fn compressed(&self) -> Result<&'a [u8]> {
        let (offset, len) =
            self.payload.ok_or_else(|| self.image.malformed("payload_length", 0, "a payload expected"))?;
        Fields::new("bzImage payload", self.code).slice(offset, len)
    }
}

const HEADER_START: u64 = 0x1f1;

/// The decompressed payload of a bzImage: an ELF file, as `extract-vmlinux`
/// would find it.
///
/// # Errors
/// When the file is no bzImage, is truncated, or its payload does not
/// decompress to at most [`decompress::MAX_KERNEL`] bytes.
pub fn extract_vmlinux(bytes: &[u8]) -> Result<Vec<u8>> {
    decompress::kernel(Payload::new(Setup::parse(bytes)?.compressed()?))
}

/// Load by the given protocol.
pub(crate) fn load(placer: Placer<'_>, request: &BootRequest<'_>) -> Result<BootState> {
    let setup = Setup::parse(request.kernel)?;
    let own = if setup.has_64 { Protocol::Linux64 } else { Protocol::Linux32 };
    match request.protocol {
        Protocol::Auto if !setup.has_64 => load_own(placer, request, &setup, own),
        Protocol::Auto => match vmlinux(&setup) {
            Ok(vmlinux) => load_uncompressed(placer, request, &setup, &vmlinux),
            Err(reason) => {
                let mut state = load_own(placer, request, &setup, own)?;
                state.note = Some(format!("the kernel decompresses itself: {reason}"));
                Ok(state)
            }
        },
        Protocol::Uncompressed => load_uncompressed(placer, request, &setup, &vmlinux(&setup)?),
        Protocol::Pvh => pvh::load(placer, request, &vmlinux(&setup)?),
        Protocol::Linux64 | Protocol::Linux32 => load_own(placer, request, &setup, request.protocol),
        Protocol::Multiboot | Protocol::Firmware => Err(LoadError::WrongProtocol {
            asked: request.protocol,
            kind: ImageKind::BzImage,
            reason: "it has only Linux entries",
        }),
    }
}

/// The payload, decompressed and known to be a 64-bit kernel.
fn vmlinux(setup: &Setup<'_>) -> Result<Vec<u8>> {
    let bytes = decompress::kernel(Payload::new(setup.compressed()?))?;
    elf::parse_amd64(&bytes)?.physical_entry()?;
    Ok(bytes)
}

fn load_uncompressed(
    placer: Placer<'_>,
    request: &BootRequest<'_>,
    setup: &Setup<'_>,
    vmlinux: &[u8],
) -> Result<BootState> {
    let page = boot_params::from_bzimage(&setup.image)?;
    linux64::enter(placer, request, vmlinux, page, setup.limits, Protocol::Uncompressed)
}

/// Enter the bzImage's own code, which decompresses the kernel.
fn load_own(
    mut placer: Placer<'_>,
    request: &BootRequest<'_>,
    setup: &Setup<'_>,
    protocol: Protocol,
) -> Result<BootState> {
    let long = protocol == Protocol::Linux64;
    if long && !setup.has_64 {
        return Err(LoadError::WrongProtocol {
            asked: protocol,
            kind: ImageKind::BzImage,
            reason: "it has no 64-bit entry (XLF_KERNEL_64 is clear in xloadflags)",
        });
    }
    placer.require_low()?;
    let end = setup.address.saturating_add(setup.init_size);
    placer.require_ram("kernel", setup.address, setup.init_size)?;
    placer.put("kernel", setup.address, setup.code)?;
    let page = boot_params::from_bzimage(&setup.image)?;
    boot_params::finish(&mut placer, request, page, setup.limits, (setup.address, end))?;
    let mut cpu = if long {
        entry::long64(&mut placer, request.cpu_signature, setup.address + ENTRY_64)?
    } else {
        entry::protected32(&mut placer, request.cpu_signature, setup.address as u32)?
    };
    cpu.gpr[reg::RSI] = placer.low(low::BOOT_PARAMS);
    Ok(BootState { cpu, protocol, note: None, loaded: placer.finish() })
}

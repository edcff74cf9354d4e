//! Decompression of a bzImage's payload (arch/x86/boot/compressed/Makefile
//! lists the formats the kernel build may choose).

use std::io::Read;
use std::sync::{Mutex, PoisonError};

use crate::error::{LoadError, Result};

/// Largest kernel accepted after decompression. Distribution kernels have 50 to
/// 90 MiB; an allyesconfig kernel has about 400.
pub const MAX_KERNEL: u64 = 512 << 20;

/// An LZ4 legacy block holds at most this many bytes decompressed.
const LZ4_BLOCK: usize = 8 << 20;
/// Most threads that decompress at once: a kernel has about seven blocks.
const MAX_THREADS: usize = 4;
/// Memory that an xz or lzma decoder may take: the build's dictionaries have 32 to 128 MiB.
const LZMA_MEMORY: u64 = 256 << 20;
/// Largest zstd window accepted: that of `zstd --ultra -22`, which the kernel build uses.
const ZSTD_WINDOW: u64 = 128 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    Lzo,
    Lz4,
    Zstd,
    /// Not compressed: an ELF file as it is.
    Elf,
    Unknown,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Gzip => "gzip",
            Format::Bzip2 => "bzip2",
            Format::Lzma => "lzma",
            Format::Xz => "xz",
            Format::Lzo => "lzo",
            Format::Lz4 => "lz4",
            Format::Zstd => "zstd",
            Format::Elf => "uncompressed",
            Format::Unknown => "unknown",
        }
    }

    fn detect(data: &[u8]) -> Format {
        const MAGICS: [(&[u8], Format); 8] = [
            (b"\x1f\x8b", Format::Gzip),
            (b"BZh", Format::Bzip2),
            (b"\x5d\0\0", Format::Lzma),
            (b"\xfd7zXZ\0", Format::Xz),
            (b"\x89LZO", Format::Lzo),
            (b"\x02\x21\x4c\x18", Format::Lz4),
            (b"\x28\xb5\x2f\xfd", Format::Zstd),
            (b"\x7fELF", Format::Elf),
        ];
        MAGICS.iter().find(|m| data.starts_with(m.0)).map_or(Format::Unknown, |m| m.1)
    }
}

/// A compressed kernel as it lies in a bzImage.
#[derive(Clone, Copy)]
pub(crate) struct Payload<'a> {
    data: &'a [u8],
    format: Format,
    /// Decompressed size, where the build says it.
    size: u64,
}

impl<'a> Payload<'a> {
    /// `bytes` is the payload of the setup header. The build appends the
    /// decompressed size to every format but gzip, which ends with it anyhow.
    pub fn new(bytes: &'a [u8]) -> Self {
        let format = Format::detect(bytes);
        match (format, bytes.split_last_chunk::<4>()) {
            (Format::Gzip | Format::Elf | Format::Unknown, _) | (_, None) => {
                Payload { data: bytes, format, size: 0 }
            }
            (_, Some((data, size))) => Payload { data, format, size: u32::from_le_bytes(*size).into() },
        }
    }
}

/// Decompress a kernel of at most [`MAX_KERNEL`] bytes.
pub(crate) fn kernel(payload: Payload<'_>) -> Result<Vec<u8>> {
    limited(payload, MAX_KERNEL)
}

fn limited(Payload { data, format, size }: Payload<'_>, limit: u64) -> Result<Vec<u8>> {
    let fail = |reason: String| LoadError::Decompress { format: format.name(), reason };
    match format {
        Format::Gzip => read_all(flate2::read::GzDecoder::new(data), limit),
        Format::Bzip2 => read_all(bzip2::read::BzDecoder::new(data), limit),
        Format::Lzma => match liblzma::stream::Stream::new_lzma_decoder(LZMA_MEMORY) {
            Ok(s) => read_all(liblzma::read::XzDecoder::new_stream(data, s), limit),
            Err(e) => Err(e.to_string()),
        },
        Format::Xz => match liblzma::stream::Stream::new_stream_decoder(LZMA_MEMORY, 0) {
            Ok(s) => read_all(liblzma::read::XzDecoder::new_stream(data, s), limit),
            Err(e) => Err(e.to_string()),
        },
        Format::Zstd => {
            match ruzstd::decoding::StreamingDecoder::new_with_max_window_size(data, ZSTD_WINDOW) {
                Ok(d) => read_all(d, limit),
                Err(e) => Err(e.to_string()),
            }
        }
        Format::Lz4 => lz4_legacy(data, size, limit),
        Format::Elf => Ok(data.to_vec()),
        // No maintained decoder exists for lzo; the kernel brings its own.
        Format::Lzo => Err("this format is not supported here".to_string()),
        Format::Unknown => Err(format!("it begins with {:02x?}", &data[..data.len().min(6)])),
    }
    .map_err(fail)
}

fn read_all(from: impl Read, limit: u64) -> std::result::Result<Vec<u8>, String> {
    let mut out = Vec::new();
    from.take(limit + 1).read_to_end(&mut out).map_err(|e| e.to_string())?;
    if out.len() as u64 > limit { Err(too_large(limit)) } else { Ok(out) }
}

fn too_large(limit: u64) -> String {
    format!("it is larger than the {} MiB accepted", limit >> 20)
}

/// LZ4's legacy frame, which the kernel build uses: magic, then blocks of a
/// 32-bit compressed size and data (lz4_Frame_format.md, "Legacy frame"). Each
/// block but the last holds 8 MiB and needs no other, so they go in parallel.
fn lz4_legacy(data: &[u8], size: u64, limit: u64) -> std::result::Result<Vec<u8>, String> {
    if size > limit {
        return Err(too_large(limit));
    }
    let mut out = vec![0; size as usize];
    let mut rest = data.get(4..).unwrap_or_default();
    let mut blocks = Vec::new();
    for to in out.chunks_mut(LZ4_BLOCK) {
        let (len, after) = rest.split_first_chunk::<4>().ok_or("a block is missing")?;
        let len = u32::from_le_bytes(*len) as usize;
        let (block, after) =
            after.split_at_checked(len).ok_or_else(|| format!("a block of {len} bytes leaves the file"))?;
        blocks.push((block, to));
        rest = after;
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes follow its last block", rest.len()));
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS);
    let blocks = Mutex::new(blocks.into_iter());
    let next = || blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((block, to)) = next() {
            let wanted = to.len();
            let got = lz4_flex::block::decompress_into(block, to).map_err(|e| e.to_string())?;
            if got != wanted {
                return Err(format!("a block holds {got} bytes instead of {wanted}"));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let joined =
            workers.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.fold(own, std::result::Result::and)
    })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn sample() -> Vec<u8> {
        (0..300_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
    }

    /// Decompress with the size the kernel build appends.
    fn check(compressed: &[u8]) {
        let mut payload = compressed.to_vec();
        payload.extend((sample().len() as u32).to_le_bytes());
        assert!(kernel(Payload::new(&payload)).unwrap() == sample());
        let e = limited(Payload::new(&payload), 1 << 20).unwrap_err().to_string();
        assert!(e.contains("larger than the 1 MiB"), "{e}");
        let e = kernel(Payload::new(&payload[..payload.len() / 2]));
        assert!(e.is_err() || e.unwrap() != sample(), "a truncated payload must not pass");
    }

    #[test]
    fn every_format_decompresses_and_is_capped() {
        let data = sample();
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        bz.write_all(&data).unwrap();
        check(&bz.finish().unwrap());

        let mut filters = liblzma::stream::Filters::new();
        filters.x86().lzma2(&liblzma::stream::LzmaOptions::new_preset(6).unwrap());
        let xz =
            liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap();
        let mut xz = liblzma::write::XzEncoder::new_stream(Vec::new(), xz);
        xz.write_all(&data).unwrap();
        check(&xz.finish().unwrap());

        let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
        let lzma = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
        let mut lzma = liblzma::write::XzEncoder::new_stream(Vec::new(), lzma);
        lzma.write_all(&data).unwrap();
        check(&lzma.finish().unwrap());

        check(&ruzstd::encoding::compress_to_vec(&data[..], ruzstd::encoding::CompressionLevel::Fastest));

        let mut lz4 = b"\x02\x21\x4c\x18".to_vec();
        for part in data.chunks(LZ4_BLOCK) {
            let block = lz4_flex::block::compress(part);
            lz4.extend((block.len() as u32).to_le_bytes());
            lz4.extend(block);
        }
        check(&lz4);
    }

    #[test]
    fn gzip_keeps_its_own_size_field() {
        let data = sample();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&data).unwrap();
        let payload = gz.finish().unwrap();
        assert!(kernel(Payload::new(&payload)).unwrap() == data);
    }

    #[test]
    fn formats_without_a_decoder_say_so() {
        let e = kernel(Payload::new(b"\x89LZO\0\x0d\x0a\x1a\x0a")).unwrap_err().to_string();
        assert!(e.contains("lzo payload") && e.contains("not supported"), "{e}");
        assert!(kernel(Payload::new(b"")).is_err());
        // Shorter than the size field that is cut off.
        assert!(kernel(Payload::new(b"\x02\x21\x4c\x18")).is_err());
    }
}

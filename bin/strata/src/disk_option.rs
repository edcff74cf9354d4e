//! `--disk PATH[,OPTION…]`.

use board::{DiskInterface, DiskSpec, PmemSpec};
use disk::{Aio, CacheMode, ImageFormat};

/// Parts between single commas; a doubled one stands for itself.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, parts.last_mut()) {
            (',', _) if rest.next_if_eq(&',').is_none() => parts.push(String::new()),
            (c, Some(last)) => last.push(c),
            (_, None) => {}
        }
    }
    parts
}

/// The value of one of a few words.
fn one_of<T: Copy>(name: &str, value: &str, words: &[(&str, T)]) -> Result<T, String> {
    words.iter().find(|w| w.0 == value).map(|w| w.1).ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|w| w.0).collect();
        format!("{name}={value} is not known; use {name}={}", known.join("|"))
    })
}

/// Parse the option's value.
pub fn parse(text: &str) -> Result<DiskSpec, String> {
    let mut parts = parts(text).into_iter();
    let path = parts.next().filter(|p| !p.is_empty()).ok_or("no path; write --disk PATH")?;
    let mut spec = DiskSpec::new(path);
    for part in parts {
        match part.split_once('=') {
            None if part == "ro" => spec.read_only = true,
            Some((name @ "backing", value)) => {
                spec.backing = one_of(name, value, &[("on", true), ("off", false)])?;
            }
            Some((name @ "format", value)) => {
                let words =
                    [("auto", None), ("raw", Some(ImageFormat::Raw)), ("qcow2", Some(ImageFormat::Qcow2))];
                spec.format = one_of(name, value, &words)?;
            }
            Some((name @ "if", value)) => {
                let words = [("nvme", DiskInterface::Nvme), ("virtio", DiskInterface::Virtio)];
                spec.interface = one_of(name, value, &words)?;
            }
            Some((name @ "cache", value)) => {
                let words = [
                    ("writeback", CacheMode::Writeback),
                    ("direct", CacheMode::Direct),
                    ("unsafe", CacheMode::Unsafe),
                ];
                spec.cache = one_of(name, value, &words)?;
            }
            Some((name @ "aio", value)) => {
                let words = [("threads", Aio::Threads), ("io_uring", Aio::IoUring)];
                spec.aio = one_of(name, value, &words)?;
            }
            Some(("serial", value)) => spec.serial = Some(value.to_string()),
            _ => {
                return Err(format!(
                    "\"{part}\" is no option of a disk; use ro, format=, serial=, if=, cache=, aio= or backing=, and double commas of a path"
                ));
            }
        }
    }
    Ok(spec)
}

/// Parse the value of `--pmem`.
pub fn parse_pmem(text: &str) -> Result<PmemSpec, String> {
    let mut parts = parts(text).into_iter();
    let path = parts.next().filter(|p| !p.is_empty()).ok_or("no path; write --pmem PATH")?;
    let mut spec = PmemSpec { path: path.into(), read_only: false };
    for part in parts {
        match part.as_str() {
            "ro" | "readonly" => spec.read_only = true,
            _ => return Err(format!("\"{part}\" is no option here; use ro, and double commas of a path")),
        }
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_options_are_told_apart() {
        let check = |text: &str, expect: DiskSpec| assert_eq!(parse(text), Ok(expect), "{text}");
        check("a.img", DiskSpec::new("a.img"));
        check("a,,b=c,ro", DiskSpec { read_only: true, ..DiskSpec::new("a,b=c") });
        let format = Some(ImageFormat::Qcow2);
        check("a,format=qcow2", DiskSpec { format, ..DiskSpec::new("a") });
        check("a,serial=s=1", DiskSpec { serial: Some("s=1".into()), ..DiskSpec::new("a") });
        let (interface, cache) = (DiskInterface::Virtio, CacheMode::Direct);
        check("a,aio=io_uring", DiskSpec { aio: Aio::IoUring, ..DiskSpec::new("a") });
        check("a,cache=direct,if=virtio", DiskSpec { interface, cache, ..DiskSpec::new("a") });
        for (text, path, read_only) in
            [("a,,b", "a,b", false), ("a,ro", "a", true), ("a,readonly", "a", true)]
        {
            assert_eq!(parse_pmem(text), Ok(PmemSpec { path: path.into(), read_only }));
        }
        assert!(parse_pmem("a,rw").is_err() && parse_pmem("").is_err());
        for (bad, text) in
            [("", "--disk PATH"), ("a,rw", "\"rw\""), ("a,if=ide", "if=nvme|virtio"), ("a,", "\"\"")]
        {
            assert!(parse(bad).expect_err(bad).contains(text), "{bad}");
        }
    }
}

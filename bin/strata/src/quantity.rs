//! Sizes and durations as people write them.

use std::time::Duration;

/// `512M`, `2G`, `65536K`, `1048576B`; a bare number is MiB.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => 1 << 20,
        "k" | "kb" | "kib" => 1 << 10,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        "b" => 1,
        other => return Err(format!("unknown unit \"{other}\"; use K, M, G, T or B, e.g. 512M")),
    };
    let number: u64 = number.parse().map_err(|_| "not a size; write e.g. 512M or 2G".to_string())?;
    number.checked_mul(scale).ok_or_else(|| "larger than any memory; write e.g. 512M or 2G".to_string())
}

/// `1=20G`: a number and a size.
pub fn disk_size(text: &str) -> Result<(usize, u64), String> {
    let (number, size) = text.split_once('=').ok_or("no size; write e.g. 0=20G")?;
    let number = number.parse().map_err(|_| "not a disk's number; write e.g. 0=20G".to_string())?;
    Ok((number, bytes(size)?))
}

/// `60s`, `1500ms`, `2m`, `1h`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let millis: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        other => return Err(format!("unknown unit \"{other}\"; use ms, s, m or h, e.g. 60s")),
    };
    let number: u64 = number.parse().map_err(|_| "not a duration; write e.g. 60s or 2m".to_string())?;
    let total =
        number.checked_mul(millis).ok_or_else(|| "longer than any run; write e.g. 60s".to_string())?;
    Ok(Duration::from_millis(total))
}

/// A port number, decimal or 0x hexadecimal.
pub fn port(text: &str) -> Result<u16, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "not a port; write e.g. 0xf4 (0 to 0xffff)".to_string())
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_sizes() {
        assert_eq!(disk_size("1=20G"), Ok((1, 20 << 30)));
        for bad in ["20G", "=20G", "x=20G", "0=", "0=20X", "-1=1M"] {
            assert!(disk_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, expect) in [
            ("512M", Ok(512 << 20)),
            ("512", Ok(512 << 20)),
            ("2g", Ok(2 << 30)),
            ("4096B", Ok(4096)),
            ("1MiB", Ok(1 << 20)),
        ] {
            assert_eq!(bytes(text), expect, "{text}");
        }
        for text in ["", "M", "-1M", "1.5G", "5Q", "99999999999T"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_and_ports() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("60"), Ok(Duration::from_secs(60)));
        assert!(duration("soon").is_err() && duration("5y").is_err());
        assert_eq!((port("0xf4"), port("244")), (Ok(0xf4), Ok(244)));
        assert!(port("0x10000").is_err());
    }
}

//! Arbitrary bytes as a saved state, and streams whose checksums are right with
//! arbitrary sections: refused with a reason, or read; what was read is the same
//! after it was written again. Input: a flag, then the stream, or for each section
//! its name, its length, and what is in it.

use saved_state::{StateReader, StateWriter};

const MAGIC: &[u8] = b"STRATA\x00\x01";
const VERSION: u16 = 1;
/// Names of sections: few, so that some come twice.
const NAMES: [&str; 4] = ["cpu", "text", "words", ""];

type Words = (u64, Vec<u16>, Option<Box<[u8]>>);

/// A stream of sections as they are, with checksums.
fn seal(mut sections: &[u8]) -> Vec<u8> {
    let mut stream = MAGIC.to_vec();
    while let Some((&[name, len], after)) = sections.split_first_chunk() {
        let payload;
        (payload, sections) = after.split_at(after.len().min(len.into()));
        let (start, name) = (stream.len(), NAMES[usize::from(name % 4)]);
        stream.push(name.len() as u8);
        stream.extend_from_slice(name.as_bytes());
        stream.extend_from_slice(&VERSION.to_le_bytes());
        stream.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        stream.extend_from_slice(payload);
        let sum = crc32fast::hash(&stream[start..]);
        stream.extend_from_slice(&sum.to_le_bytes());
    }
    stream.push(0);
    let sum = crc32fast::hash(&stream);
    stream.extend_from_slice(&sum.to_le_bytes());
    stream
}

/// One run.
pub fn state_stream(data: &[u8]) {
    let Some((flag, rest)) = data.split_first() else { return };
    let stream = if flag & 1 == 0 { seal(rest) } else { [MAGIC, rest].concat() };
    let mut reader = match StateReader::new(&stream) {
        Ok(reader) => reader,
        Err(refusal) => return assert!(!refusal.to_string().is_empty()),
    };
    let mut writer = StateWriter::new();
    let text = reader.section::<String>("text", VERSION);
    let words = reader.section::<Words>("words", VERSION);
    if let Ok(text) = &text {
        writer.section("text", VERSION, text).expect("it was read");
    }
    if let Ok(words) = &words {
        writer.section("words", VERSION, words).expect("it was read");
    }
    let again = writer.finish();
    let mut reader = StateReader::new(&again).expect("written just now");
    if text.is_ok() {
        assert_eq!(reader.section("text", VERSION), text);
    }
    if words.is_ok() {
        assert_eq!(reader.section("words", VERSION), words);
    }
    assert_eq!(reader.finish(), Ok(()));
}

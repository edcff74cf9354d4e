//! What is read of DNS messages (RFC 1035): the question, and addresses in answers.
//!
//! Messages are forwarded as they are, but for their identifiers. Own, because hickory-proto builds whole
//! messages on the heap; here one name and some addresses are looked at in place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{be16, be32};

/// Longest name in its text form.
const MAX_NAME: usize = 255;
/// Answers looked at in one message.
const MAX_ANSWERS: usize = 64;
/// Compression pointers followed for one name.
const MAX_JUMPS: usize = 16;
const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// Response code of a query that policy forbids.
const REFUSED: u8 = 5;

/// What a message asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// Lower case.
    pub(crate) name: String,
    kind: u16,
    class: u16,
}

/// What a message asks for; `None` if that is not exactly one thing.
pub(crate) fn asked(message: &[u8]) -> Option<Question> {
    if be16(message, 4)? != 1 {
        return None;
    }
    let (name, after) = name_at(message, HEADER)?;
    Some(Question { name, kind: be16(message, after)?, class: be16(message, after + 2)? })
}

/// The name a message asks for, lower case; `None` if it does not ask for exactly one.
pub(crate) fn question(message: &[u8]) -> Option<String> {
    asked(message).map(|q| q.name)
}

/// Whether a message is a response.
pub(crate) fn is_response(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

/// An address in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) address: IpAddr,
    /// Seconds it may be used.
    pub(crate) ttl: u32,
}

/// The addresses that a response gives for its question.
pub(crate) fn answers(message: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    // A response with no error.
    let flags = be16(message, 2).unwrap_or(0);
    if flags & 0x8000 == 0 || flags & 15 != 0 || be16(message, 4) != Some(1) {
        return found;
    }
    let Some((_, after)) = name_at(message, HEADER) else { return found };
    let count = be16(message, 6).map_or(0, usize::from).min(MAX_ANSWERS);
    let mut at = after + 4;
    for _ in 0..count {
        let Some((answer, next)) = record(message, at) else { break };
        found.extend(answer);
        at = next;
    }
    found
}

/// A resource record: its address, if it has one, and where the next one starts.
fn record(message: &[u8], at: usize) -> Option<(Option<Answer>, usize)> {
    let (_, at) = name_at(message, at)?;
    let (kind, class, ttl) = (be16(message, at)?, be16(message, at + 2)?, be32(message, at + 4)?);
    let length = usize::from(be16(message, at + 8)?);
    let data = message.get(at + 10..at + 10 + length)?;
    let address = match (kind, class) {
        (TYPE_A, CLASS_IN) => <[u8; 4]>::try_from(data).ok().map(|b| Ipv4Addr::from(b).into()),
        (TYPE_AAAA, CLASS_IN) => <[u8; 16]>::try_from(data).ok().map(|b| Ipv6Addr::from(b).into()),
        _ => None,
    };
    Some((address.map(|address| Answer { address, ttl }), at + 10 + length))
}

/// A name as text, and where what follows it starts.
fn name_at(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let (mut end, mut jumps) = (None, 0);
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = message.get(at + 1..at + 1 + usize::from(length))?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
                at += 1 + usize::from(length);
            }
            0xc0.. => {
                end.get_or_insert(at + 2);
                at = usize::from(be16(message, at)? & 0x3fff);
                jumps += 1;
            }
            _ => return None,
        }
        if name.len() > MAX_NAME || jumps > MAX_JUMPS {
            return None;
        }
    }
}

/// Turn a query into the response that refuses it.
pub(crate) fn refuse(query: &[u8]) -> Option<Vec<u8>> {
    let (_, end) = name_at(query, HEADER)?;
    let mut response = query.get(..end + 4)?.to_vec();
    let (fixed, _) = response.split_first_chunk_mut::<HEADER>()?;
    // Response, recursion as asked; no record but the question.
    fixed[2] = fixed[2] & 0x79 | 0x80;
    fixed[3] = 0x80 | REFUSED;
    fixed[6..12].fill(0);
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(name: &str) -> Vec<u8> {
        let mut m = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            m.push(label.len() as u8);
            m.extend(label.as_bytes());
        }
        m.extend([0, 0, 1, 0, 1]);
        m
    }

    fn response(name: &str, records: &[(&[u8], u16, u32, &[u8])]) -> Vec<u8> {
        let mut m = query(name);
        m[2] = 0x81;
        m[7] = records.len() as u8;
        for (owner, kind, ttl, data) in records {
            m.extend(*owner);
            m.extend(kind.to_be_bytes());
            m.extend(CLASS_IN.to_be_bytes());
            m.extend(ttl.to_be_bytes());
            m.extend((data.len() as u16).to_be_bytes());
            m.extend(*data);
        }
        m
    }

    #[test]
    fn questions_and_answers_are_read() {
        assert_eq!(question(&query("Www.Example.org")).as_deref(), Some("www.example.org"));
        // A CNAME, then addresses whose owners are compressed.
        let m = response(
            "a.example",
            &[
                (&[0xc0, 12], 5, 60, b"\x01b\xc0\x0e"),
                (&[0xc0, 39], 1, 30, &[1, 2, 3, 4]),
                (b"\0", 28, 9, &[1; 16]),
            ],
        );
        let v6 = IpAddr::from([1u8; 16]);
        assert_eq!(
            answers(&m),
            [Answer { address: IpAddr::from([1, 2, 3, 4]), ttl: 30 }, Answer { address: v6, ttl: 9 }]
        );
        assert_eq!(answers(&query("a.example")), [], "a query answers nothing");
    }

    #[test]
    fn a_refusal_answers_the_question() {
        let m = refuse(&query("x.y")).unwrap();
        assert_eq!(question(&m).as_deref(), Some("x.y"));
        assert_eq!((m[0], m[1], m[2] & 0x80, m[3] & 15), (0x12, 0x34, 0x80, REFUSED));
    }

    #[test]
    fn loops_and_lengths_end() {
        let mut m = query("x");
        m.truncate(HEADER);
        m.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(question(&m), None, "a name that points at itself");
        assert_eq!(question(&query(&["a".repeat(63).as_str(); 5].join("."))), None, "a name too long");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (question(&bytes), answers(&bytes), refuse(&bytes));
            let mut m = response("a.b", &[]);
            m[7] = 9;
            m.extend(bytes);
            let _ = answers(&m);
        }
    }
}

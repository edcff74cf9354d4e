//! Text that a guest has chosen, on a terminal of the host.
//!
//! A terminal obeys control characters: it fills the clipboard, changes its title, and
//! types answers to questions. Outside a guest's console nothing of that is a guest's to do.

/// The most parameters of a colour sequence that is kept, in characters.
const LONGEST_COLOUR: usize = 64;

/// The text with all control characters but newline and tab written out, as `\u{1b}`.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// JSON with the control characters written out that its encoder leaves: DEL and U+0080
/// to U+009F, which stand in strings alone.
pub fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\x7f'..='\u{9f}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Where in a control sequence (ECMA-48) the text is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Text,
    /// Behind ESC.
    Escape,
    /// In a control sequence, with its parameters so far.
    Sequence(String),
    /// In a string for the terminal: a title, the clipboard, pictures.
    Control,
}

/// Takes out of a log what a terminal would obey, but line ends, tabs and colours (SGR).
#[derive(Debug, Default)]
pub struct LogFilter {
    place: Place,
    /// The beginning of a character whose rest has not come.
    cut: Vec<u8>,
    /// A colour was set, and may still be.
    coloured: bool,
}

impl LogFilter {
    /// What is to be shown of the log's next bytes. What is no UTF-8 is U+FFFD.
    pub fn take(&mut self, bytes: &[u8]) -> String {
        let mut held = std::mem::take(&mut self.cut);
        held.extend_from_slice(bytes);
        let (mut out, mut rest) = (String::with_capacity(held.len()), &held[..]);
        loop {
            let (valid, wrong) = match std::str::from_utf8(rest) {
                Ok(text) => (text, None),
                Err(e) => {
                    let (valid, wrong) = rest.split_at(e.valid_up_to());
                    (std::str::from_utf8(valid).unwrap_or_default(), Some((wrong, e.error_len())))
                }
            };
            valid.chars().for_each(|c| self.step(c, &mut out));
            match wrong {
                None => return out,
                Some((cut, None)) => {
                    self.cut = cut.to_vec();
                    return out;
                }
                Some((wrong, Some(length))) => {
                    self.step(char::REPLACEMENT_CHARACTER, &mut out);
                    rest = &wrong[length..];
                }
            }
        }
    }

    /// What is to be shown at the log's end.
    pub fn end(&mut self) -> &'static str {
        if std::mem::take(&mut self.coloured) { "\x1b[0m" } else { "" }
    }

    fn step(&mut self, c: char, out: &mut String) {
        let place = std::mem::take(&mut self.place);
        self.place = match (place, c) {
            // Nothing reaches beyond its line: a sequence without an end hides no log.
            (_, '\n') | (Place::Text, '\r' | '\t') => {
                out.push(c);
                Place::Text
            }
            // CAN and SUB break sequences off.
            (_, '\x18' | '\x1a') => Place::Text,
            (_, '\x1b') => Place::Escape,
            (Place::Escape, '[') | (Place::Text, '\u{9b}') => Place::Sequence(String::new()),
            (Place::Escape, 'P' | 'X' | ']' | '^' | '_')
            | (Place::Text, '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}') => Place::Control,
            (Place::Control, '\x07' | '\u{9c}') => Place::Text,
            (Place::Control, _) => Place::Control,
            // A control character within a sequence, and what comes before its end.
            (place @ (Place::Escape | Place::Sequence(_)), c) if c.is_control() => place,
            (Place::Escape, ' '..='/') => Place::Escape,
            (Place::Sequence(mut parameters), ' '..='?') => {
                if parameters.len() <= LONGEST_COLOUR {
                    parameters.push(c);
                }
                Place::Sequence(parameters)
            }
            (Place::Sequence(parameters), 'm') => {
                let plain = parameters.bytes().all(|b| matches!(b, b'0'..=b'9' | b';' | b':'));
                if plain && parameters.len() <= LONGEST_COLOUR {
                    out.push_str(&format!("\x1b[{parameters}m"));
                    self.coloured = true;
                }
                Place::Text
            }
            (Place::Escape | Place::Sequence(_), _) => Place::Text,
            (Place::Text, c) => {
                if !c.is_control() {
                    out.push(c);
                }
                Place::Text
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out() {
        for (text, expect) in [
            ("plain, ä, €\n\tnext", "plain, ä, €\n\tnext"),
            ("\x1b]52;c;eA==\x07\x1b[2J", "\\u{1b}]52;c;eA==\\u{7}\\u{1b}[2J"),
            ("a\rb\x7f\u{9b}2J\0", "a\\u{d}b\\u{7f}\\u{9b}2J\\u{0}"),
        ] {
            assert_eq!(escaped(text), expect);
        }
    }

    #[test]
    fn json_stays_what_it_says_and_has_no_control_characters() {
        let all: String = (0..0x100).filter_map(char::from_u32).collect();
        let value = serde_json::json!({ "hostname": all });
        let text = escaped_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn a_log_keeps_its_lines_and_colours_alone() {
        for (log, expect) in [
            (
                &b"[  \x1b[0;32mOK\x1b[0m  ] Started \xc3\xa4\r\n\tnext\n"[..],
                "[  \x1b[0;32mOK\x1b[0m  ] Started ä\r\n\tnext\n",
            ),
            (b"a\x1b[38:5:208mb\x1b[mc", "a\x1b[38:5:208mb\x1b[mc"),
            // The screen, the cursor, questions, modes of the keyboard.
            (b"a\x1b[2J\x1b[H\x1b[6n\x1b[?25l\x1b[>4;2m\x1b[ mb\x1bc\x1b(0c", "abc"),
            // Title, clipboard, device control, without an end too.
            (b"a\x1b]0;t\x07b\x1b]52;c;eA==\x1b\\c\x1bPq\x9c\x1b\\d\x1b]0;open\ne", "abcd\ne"),
            (b"a\xc2\x9b2Jb\xc2\x9d0;t\xc2\x9cc\xc2\x85d", "abcd"),
            // Broken off, begun anew within, split by other controls.
            (b"a\x1b[3\x18b\x1b[3\x1b[1mc\x1b[\x0731md", "ab\x1b[1mc\x1b[31md"),
            (b"x\x08\x7f\x07\0y\xff\x9bz", "xy\u{fffd}\u{fffd}z"),
        ] {
            for piece in [1, 2, 3, log.len()] {
                let mut filter = LogFilter::default();
                let shown: String = log.chunks(piece).map(|part| filter.take(part)).collect();
                assert_eq!(shown, expect, "pieces of {piece}");
                assert_eq!(!filter.end().is_empty(), expect.contains('\x1b'));
            }
        }
        let mut filter = LogFilter::default();
        let long = format!("\x1b[{}mx", "1;".repeat(1000));
        assert_eq!(filter.take(long.as_bytes()), "x");
    }
}

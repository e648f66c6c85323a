//! Names and messages from the file system, from other processes and from other hosts may hold anything, also
//! sequences that move a terminal's cursor or change its title. What a person sees goes through here.

use std::fmt::Write;

/// A path or name as one unambiguous word on a terminal: control characters and bytes that are not UTF-8 as `\xNN`,
/// invisible or direction-changing characters as `\u{N}`, a backslash doubled.
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' { out.push_str("\\\\") } else { push(&mut out, c) }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}"); // writing to a String cannot fail
        }
    }
    out
}

/// Like [`escape_bytes`], for text that may hold backslashes of its own (log lines, messages): those stay single.
pub fn escape_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push(&mut out, c));
    out
}

/// A word of a command that a person may type, for a shell. What cannot be typed is escaped as in [`escape_line`].
pub fn quoted(text: &str) -> String {
    let text = escape_line(text);
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

fn push(out: &mut String, c: char) {
    let _ = match c {
        '\n' => out.write_str("\\n"),
        '\t' => out.write_str("\\t"),
        c if (c as u32) < 0x80 && c.is_control() => write!(out, "\\x{:02x}", c as u32),
        c if c.is_control() || is_invisible(c) => write!(out, "\\u{{{:x}}}", c as u32),
        c => out.write_char(c),
    };
}

/// Line separators, zero-width characters, direction marks and overrides, tags, the byte order mark.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_visible_text() {
        assert_eq!(escape_bytes("Füße 写真.jpg".as_bytes()), "Füße 写真.jpg");
        assert_eq!(escape_bytes(b"a\x1b]0;pwned\x07\n\xff\\x"), "a\\x1b]0;pwned\\x07\\n\\xff\\\\x");
        assert_eq!(escape_bytes("gpj\u{202e}.exe\u{9b}1m".as_bytes()), "gpj\\u{202e}.exe\\u{9b}1m");
        assert_eq!(escape_line("a\\b\tc\r"), "a\\b\\tc\\x0d");
    }
}

//! The join token: what `delugefs invite` prints and `--join` takes. One word, so that it survives a mail, a terminal
//! and a double click; a mistyped one is noticed before anything is dialled.
//!
//! It says whom to ask (an address is only a hint, the key is what is checked) and holds a secret that works once, until
//! it expires or is used. Whoever has it can join: it is to be passed on like a password.

use std::fmt;
use std::str::FromStr;

use crate::ids::{ClusterId, DiskId};

/// What every token begins with.
pub const PREFIX: &str = "delugefs1-";
/// Length of the secret, in bytes.
pub const SECRET_BYTES: usize = 16;
/// Most addresses in a token.
pub const ADDRESSES_MAX: usize = 8;
/// Longest address, in bytes: the longest DNS name and a port.
pub const ADDRESS_MAX_BYTES: usize = 255;

const CHECK_BYTES: usize = 4;
/// RFC 4648 base 32, in lower case.
const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// An invitation.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The cluster to join.
    pub cluster: ClusterId,
    /// The disk to ask.
    pub inviter: DiskId,
    /// Proves that its bearer was invited.
    pub secret: [u8; SECRET_BYTES],
    /// When it stops working, in seconds since 1970 by the inviter's clock. The inviter decides; the bearer only warns.
    pub expires_s: u64,
    /// Where the disk may be reached: `host:port`, `1.2.3.4:port`, `[::1]:port`.
    pub addresses: Vec<String>,
}

/// Why a text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else altogether.
    #[error("this is not a join token: one begins with {PREFIX}")]
    NotAToken,
    /// A character that no token has.
    #[error("this join token has the character {0:?}, which no token has: was it copied right?")]
    Character(char),
    /// The check does not fit.
    #[error("this join token was mistyped or is cut short: copy all of it, from {PREFIX} to the end")]
    Damaged,
    /// The check fits, the rest does not.
    #[error("this join token is from another version of delugefs: use the same version on both hosts")]
    Unknown,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [&self.cluster.0[..], &self.inviter.0, &self.secret, &self.expires_s.to_le_bytes()].concat();
        for address in self.addresses.iter().filter(|a| is_address(a)).take(ADDRESSES_MAX) {
            bytes.push(address.len() as u8);
            bytes.extend(address.as_bytes());
        }
        let check = check(&bytes);
        bytes.extend(check);
        f.write_str(PREFIX)?;
        f.write_str(&base32(&bytes))
    }
}

/// Without the secret: errors and logs are read by others.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?} at {:?})", self.inviter, self.addresses)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim().to_ascii_lowercase();
        let digits = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        let bytes = unbase32(digits)?;
        let (bytes, found) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(TokenError::Damaged)?;
        if check(bytes) != *found {
            return Err(TokenError::Damaged);
        }
        parse(bytes).ok_or(TokenError::Unknown)
    }
}

/// Whether this could be an address: a host and a port.
pub fn is_address(text: &str) -> bool {
    let fit = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b':' | b'[' | b']' | b'%' | b'_');
    let parts = text.rsplit_once(':');
    text.len() <= ADDRESS_MAX_BYTES
        && text.bytes().all(fit)
        && parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn parse(mut bytes: &[u8]) -> Option<Token> {
    fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
        let (head, rest) = input.split_first_chunk::<N>()?;
        *input = rest;
        Some(*head)
    }
    let mut token = Token {
        cluster: ClusterId(take(&mut bytes)?),
        inviter: DiskId(take(&mut bytes)?),
        secret: take(&mut bytes)?,
        expires_s: u64::from_le_bytes(take(&mut bytes)?),
        addresses: Vec::new(),
    };
    while let Some((&length, rest)) = bytes.split_first() {
        let (address, rest) = rest.split_at_checked(usize::from(length))?;
        token.addresses.push(String::from_utf8(address.to_vec()).ok().filter(|text| is_address(text))?);
        bytes = rest;
    }
    (token.addresses.len() <= ADDRESSES_MAX).then_some(token)
}

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &[PREFIX.as_bytes(), bytes].concat());
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&hash.as_ref()[..CHECK_BYTES]);
    check
}

fn base32(bytes: &[u8]) -> String {
    let bit = |i: usize| bytes.get(i / 8).is_some_and(|byte| byte >> (7 - i % 8) & 1 == 1);
    let digit = |start: usize| (start..start + 5).fold(0, |value, i| value << 1 | usize::from(bit(i)));
    (0..bytes.len() * 8).step_by(5).map(|start| DIGITS[digit(start)] as char).collect()
}

fn unbase32(text: &str) -> Result<Vec<u8>, TokenError> {
    let (mut bytes, mut value, mut bits) = (Vec::new(), 0_u32, 0);
    for c in text.chars() {
        let digit = DIGITS.iter().position(|&d| d as char == c).ok_or(TokenError::Character(c))?;
        value = value << 5 | digit as u32;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((value >> bits) as u8);
            value &= (1 << bits) - 1;
        }
    }
    // Bits left over are filling: fewer than a digit's, and zero.
    if bits >= 5 || value != 0 { Err(TokenError::Damaged) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            cluster: ClusterId([7; 16]),
            inviter: DiskId([9; 32]),
            secret: *b"0123456789abcdef",
            expires_s: 1_800_000_000,
            addresses: vec!["192.168.1.5:40999".into(), "[fe80::1]:7".into(), "nas.example.org:7001".into()],
        }
    }

    #[test]
    fn one_word_that_comes_back() {
        let text = token().to_string();
        assert!(text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') && text.len() < 250, "{text}");
        assert_eq!(text.parse::<Token>().unwrap(), token());
        assert_eq!(format!("  {}\n", text.to_uppercase()).parse::<Token>().unwrap(), token());
        assert!(!format!("{:?}", token()).contains("0123"));
    }

    #[test]
    fn every_single_typo_is_noticed() {
        let text = token().to_string();
        for i in PREFIX.len()..text.len() {
            for c in ['a', '2', 'z'] {
                let mut typo = text.clone();
                typo.replace_range(i..=i, &c.to_string());
                assert!(typo == text || typo.parse::<Token>() == Err(TokenError::Damaged), "{i} {c}");
            }
            assert_eq!(text[..i].parse::<Token>(), Err(TokenError::Damaged), "cut at {i}");
        }
        assert_eq!("delugefs".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!(text.replace('a', "!").parse::<Token>(), Err(TokenError::Character('!')));
        assert_eq!(format!("{text}aaaaaaaa").parse::<Token>(), Err(TokenError::Damaged));
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for (text, fit) in [("a:1", true), ("[::1]:65535", true), ("a:0", false), ("a:65536", false), (":1", false)] {
            assert_eq!(is_address(text), fit, "{text}");
        }
        assert!(!is_address("a b:1") && !is_address("a") && !is_address(&format!("{}:1", "a".repeat(255))));
    }
}

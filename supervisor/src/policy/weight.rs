//! Weighted rendezvous hashing in integers, so that every machine ranks alike.
//!
//! Each pair of content and disk gives a number `u`, evenly spread over (0, 1); the disk's cost for the content is
//! `-ln(u) / weight`, and the cheapest disk wins. That is a race between exponential clocks: a disk wins in proportion
//! to its weight, and a disk that comes or goes moves only what it wins or held. Floating-point logarithms differ
//! between maths libraries in the last bit, hence a table and integers. The base of the logarithm does not matter.

/// Bits after the binary point of a logarithm.
const FRACTION_BITS: u32 = 32;
const STEPS: usize = 256;
/// log2(1 + i / 256).
static LOG2: [u64; STEPS + 1] = log2_table();

const fn log2_table() -> [u64; STEPS + 1] {
    let mut table = [0; STEPS + 1];
    let mut i = 0;
    while i < STEPS {
        // Squaring a number in [1, 2) doubles its logarithm: whether the square reaches 2 is the next binary digit.
        let mut y = ((STEPS + i) as u128) << 52;
        let mut digit = FRACTION_BITS;
        while digit > 0 {
            digit -= 1;
            y = (y * y) >> 60;
            if y >> 61 != 0 {
                y >>= 1;
                table[i] |= 1 << digit;
            }
        }
        i += 1;
    }
    table[STEPS] = 1 << FRACTION_BITS;
    table
}

/// -log2(u / 2^64), 32 bits after the point; 0 counts as 1.
#[inline]
fn neg_log2(u: u64) -> u64 {
    let u = u.max(1);
    let zeros = u.leading_zeros();
    let mantissa = u << zeros;
    let step = (mantissa >> 55) as usize & (STEPS - 1);
    let rest = (mantissa >> 23) & 0xffff_ffff;
    let log = LOG2[step] + (((LOG2[step + 1] - LOG2[step]) * rest) >> 32);
    ((u64::from(zeros) + 1) << FRACTION_BITS) - log
}

/// Spreads the bits of a number evenly and reversibly.
#[inline]
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 64 bits that stand for an id.
pub(super) fn key(id: &[u8; 32]) -> u64 {
    id.chunks_exact(8).fold(0x9e37_79b9_7f4a_7c15, |state, word| {
        mix(state ^ word.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    })
}

/// The inverse of a disk's weight: free space in MiB, cut to three significant bits, so that hosts whose news are a
/// little older mostly rank the same.
pub(super) fn inverse_weight(free_bytes: u64) -> u64 {
    let free = (free_bytes >> 20).max(1);
    let cut = 61u32.saturating_sub(free.leading_zeros());
    (1 << 60) / ((free >> cut) << cut)
}

/// What a content costs on a disk; the smallest wins.
#[inline]
pub(super) fn cost(content_key: u64, disk_key: u64, inverse_weight: u64) -> u64 {
    // At most 2^38 times 2^60; what is cut off is less than a millionth for disks up to an exabyte.
    ((u128::from(neg_log2(mix(content_key ^ disk_key))) * u128::from(inverse_weight)) >> 34) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm() {
        assert_eq!(neg_log2(1 << 63), 1 << 32);
        assert_eq!(neg_log2(1), 64 << 32);
        assert_eq!(neg_log2(0), neg_log2(1));
        for u in [3u64, 1000, 1 << 40, u64::MAX / 3, u64::MAX / 2 + 12345, u64::MAX] {
            let exact = 64.0 - (u as f64).log2();
            let got = neg_log2(u) as f64 / (1u64 << 32) as f64;
            assert!((exact - got).abs() < 1e-5, "{u}: {exact} {got}");
        }
    }

    #[test]
    fn weight_keeps_three_bits() {
        let mib = |n: u64| inverse_weight(n << 20);
        assert_eq!(mib(0), 1 << 60);
        assert_eq!(mib(7), (1 << 60) / 7);
        assert_eq!(mib(9), mib(8));
        assert_eq!(mib(0b1011_0110), mib(0b1010_0001));
        assert_ne!(mib(0b1011_0110), mib(0b1100_0000));
        assert!(inverse_weight(u64::MAX) > 1 << 16);
    }

    #[test]
    fn wins_follow_weights() {
        let weights = [1u64 << 30, 2 << 30, 5 << 30, 8 << 30];
        let disks: Vec<_> = weights.iter().map(|free| (mix(*free), inverse_weight(*free))).collect();
        let mut wins = [0u32; 4];
        for content in 0..16_000u64 {
            let best = (0..4).min_by_key(|d| cost(mix(content), disks[*d].0, disks[*d].1)).unwrap();
            wins[best] += 1;
        }
        for (win, share) in wins.iter().zip([1000u32, 2000, 5000, 8000]) {
            assert!(win.abs_diff(share) < share / 10, "{wins:?}");
        }
    }
}

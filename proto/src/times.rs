//! Times as everybody here keeps them: nanoseconds since 1970 in 64 bits, 1677 to 2262.

/// What a file system says, or the nearest that can be kept: some can keep any year. Whoever looks at one file gets the same from it.
pub fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    let exact = i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    exact.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_that_can_be_kept() {
        assert_eq!(nanoseconds(-2, 5), -1_999_999_995);
        assert_eq!((nanoseconds(i64::MIN, 0), nanoseconds(i64::MAX, 999_999_999)), (i64::MIN, i64::MAX));
        // The earliest as a file system says it: below what fits before its nanoseconds are added.
        assert_eq!(nanoseconds(i64::MIN.div_euclid(1_000_000_000), i64::MIN.rem_euclid(1_000_000_000)), i64::MIN);
    }
}

//! Plain aligned columns, and sizes for people.

/// Rows with their cells padded to the widest of each column; columns in `right` are aligned to the right. No trailing
/// blanks. The first row is the heading.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        out += cells.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
    }
    out
}

/// A row of a table.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(Into::into).into()
}

/// A size in at most seven characters, in powers of 1024.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [row(["DISK", "FREE", "ROOT"]), row(["1a2b3c4d", "9 B", "/a"]), row(["-", "120 GiB", ""])];
        assert_eq!(table(&rows, &[1]), "DISK         FREE  ROOT\n1a2b3c4d      9 B  /a\n-         120 GiB\n");
    }

    #[test]
    fn sizes() {
        let sizes = [0, 1023, 1024, 10_239, 1_023_000, 1 << 30, 12_345_678_901, u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "10 KiB", "999 KiB", "1.0 GiB", "11 GiB", "16 EiB"]);
    }
}

//! The folder of a broker that the store's tests pin, as bytes: seeds of the target `store`, and what surrounds the file that it changes.

const GOLDEN: &str = include_str!("../../store/tests/golden/store.hex");

/// The bytes of a file of that folder: lines of hexadecimal digits, and lengths of runs of zeros.
pub fn file(name: &str) -> Vec<u8> {
    let section =
        GOLDEN.split("file ").find_map(|part| part.strip_prefix(name)).expect("a file of the folder");
    let mut out = Vec::new();
    for line in section.lines().skip(1) {
        match line.strip_prefix("zeros ") {
            Some(count) => out.resize(out.len() + count.parse::<usize>().expect("a length"), 0),
            None => out.extend(unhex(line)),
        }
    }
    out
}

/// Bytes of hexadecimal digits.
pub fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

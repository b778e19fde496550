//! The Huffman code of HPACK (RFC 7541 5.2, appendix B).

use super::super::super::Reason;

/// Appends what `coded` stands for.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
    let mut input = coded.iter();
    // The next bits, from the highest bit of `window` on, `available` of them real and the rest zero.
    let (mut window, mut available) = (0_u64, 0_u32);
    loop {
        while available <= 56 {
            let Some(byte) = input.next() else { break };
            window |= u64::from(*byte) << (56 - available);
            available += 8;
        }
        let Some((symbol, length)) = next(window).filter(|(_, length)| *length <= available) else {
            // What is left is padding: fewer than 8 bits, all ones.
            return if available < 8 && window.leading_ones() == available { Ok(()) } else { Err(BAD_CODE) };
        };
        out.push(symbol);
        window <<= length;
        available -= length;
    }
}

/// The symbol whose code the window begins with.
fn next(window: u64) -> Option<(u8, u32)> {
    let (symbol, length) = CODE.short[(window >> 56) as usize];
    if length > 0 {
        return Some((symbol, u32::from(length)));
    }
    let bits = (window >> 34) as u32;
    for length in SHORT + 1..=LONGEST {
        let code = bits >> (LONGEST - length);
        let place = code.wrapping_sub(CODE.first[length]);
        if place < CODE.count[length] {
            let symbol = CODE.symbols[(CODE.before[length] + place) as usize];
            // The code's end-of-string symbol must not occur (5.2).
            return u8::try_from(symbol).ok().map(|symbol| (symbol, length as u32));
        }
    }
    None
}

/// The code is canonical: codes of a length are consecutive numbers, in the order of their symbols; so lengths tell all.
struct Code {
    /// Symbol and length by the first eight bits, for codes of up to eight bits; length 0 for longer ones.
    short: [(u8, u8); 256],
    /// First code of each length.
    first: [u32; LONGEST + 1],
    /// How many codes have each length.
    count: [u32; LONGEST + 1],
    /// How many codes are shorter.
    before: [u32; LONGEST + 1],
    /// Symbols by length, then value.
    symbols: [u16; 257],
}

const CODE: Code = {
    let mut code = Code {
        short: [(0, 0); 256],
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        before: [0; LONGEST + 1],
        symbols: [0; 257],
    };
    let (mut length, mut next, mut placed) = (1, 0_u32, 0_u32);
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.before[length] = placed;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                code.symbols[placed as usize] = symbol as u16;
                if length <= SHORT {
                    let mut slot = (next as usize) << (SHORT - length);
                    let end = (next as usize + 1) << (SHORT - length);
                    while slot < end {
                        code.short[slot] = (symbol as u8, length as u8);
                        slot += 1;
                    }
                }
                next += 1;
                placed += 1;
            }
            symbol += 1;
        }
        code.count[length] = next - code.first[length];
        length += 1;
    }
    code
};

const SHORT: usize = 8;
const LONGEST: usize = 30;
const BAD_CODE: Reason = Reason::Malformed("a broken Huffman code");

/// Length in bits of the code of each byte, and of end-of-string.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, Reason> {
        let mut out = Vec::new();
        decode(coded, &mut out).map(|()| out)
    }

    /// Code and length of a symbol, from the tables that decoding uses.
    fn encoded(symbol: u16) -> (u64, usize) {
        let place =
            CODE.symbols.iter().position(|each| *each == symbol).expect("every symbol has a place") as u32;
        let length = usize::from(LENGTHS[usize::from(symbol)]);
        (u64::from(CODE.first[length] + place - CODE.before[length]), length)
    }

    #[test]
    fn the_code_is_complete_and_holds_the_rfcs_examples() {
        let filled: f64 = LENGTHS.iter().map(|length| 0.5_f64.powi(i32::from(*length))).sum();
        assert!((filled - 1.0).abs() < f64::EPSILON, "every infinite string of bits is decodable");
        for (symbol, code) in
            [(b'0', 0x0), (b'A', 0x21), (b'|', 0x7fc), (0, 0x1ff8), (0xff, 0x3ff_ffee), (1, 0x7f_ffd8)]
        {
            assert_eq!(encoded(u16::from(symbol)).0, code, "symbol {symbol}");
        }
        assert_eq!(encoded(256), (0x3fff_ffff, 30));
    }

    #[test]
    fn every_byte_decodes_from_its_code() {
        for symbol in 0..=255_u8 {
            let (code, length) = encoded(u16::from(symbol));
            let padded = (code << (64 - length)) | (u64::MAX >> length);
            let bytes = &padded.to_be_bytes()[..length.div_ceil(8)];
            assert_eq!(decoded(bytes), Ok(vec![symbol]));
        }
    }

    #[test]
    fn padding_is_fewer_than_eight_ones() {
        assert_eq!(decoded(&[]), Ok(vec![]));
        assert_eq!(decoded(&[0x07]), Ok(vec![b'0']), "00000 and three ones");
        assert_eq!(decoded(&[0x06]), Err(BAD_CODE), "a zero in the padding");
        assert_eq!(decoded(&[0xff]), Err(BAD_CODE), "eight ones");
        assert_eq!(decoded(&[0x07, 0xff]), Err(BAD_CODE), "eleven ones");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(BAD_CODE), "end-of-string");
    }
}

//! HPACK (RFC 7541), the reading half.

mod huffman;
mod table;

use super::super::headers::{Field, Span};
use super::super::{HEAD_LIMIT, Headers, Reason};
use table::Table;

/// The decoder of one direction, whose table follows every header block of that direction.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    table: Table,
}

/// Where a header block is decoded to; used again for the next one.
#[derive(Debug, Default)]
pub(super) struct FieldList {
    bytes: Vec<u8>,
    fields: Vec<Field>,
}

impl FieldList {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// All fields, pseudo-fields included.
    pub(super) fn all(&self) -> Headers<'_> {
        Headers::new(&self.bytes, &self.fields)
    }

    /// A large head must not cost memory for as long as its connection lasts.
    pub(super) fn trim(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(2048);
        self.fields.clear();
        self.fields.shrink_to(64);
    }

    fn room(&self, length: usize) -> Result<(), Reason> {
        if self.bytes.len() + length > HEAD_LIMIT { Err(Reason::HeadTooLarge) } else { Ok(()) }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<Span, Reason> {
        self.room(bytes.len())?;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Ok(Span::new(start, self.bytes.len()))
    }
}

impl Decoder {
    /// Decodes a whole header block into `list`. After an error the table is no longer the encoder's.
    pub(super) fn decode(&mut self, block: &[u8], list: &mut FieldList) -> Result<(), Reason> {
        list.bytes.clear();
        list.fields.clear();
        let mut input = Input(block);
        while let Some(&first) = input.0.first() {
            match first {
                // 6.1 Indexed
                0x80.. => {
                    let index = input.integer(7)?;
                    let (name, value) = self.table.get(index).ok_or(BAD_INDEX)?;
                    let field = Field { name: list.push(name)?, value: list.push(value)? };
                    add(list, field)?;
                }
                // 6.2.1 Literal with incremental indexing
                0x40.. => {
                    let field = self.literal(&mut input, 6, list)?;
                    self.table.insert(field.name.of(&list.bytes), field.value.of(&list.bytes));
                    add(list, field)?;
                }
                // 6.3 Size update, only at the start of a block (4.2)
                0x20.. => {
                    if !list.fields.is_empty() {
                        return Err(Reason::Malformed("an HPACK size update after a field"));
                    }
                    let size = input.integer(5)?;
                    if size > table::LIMIT {
                        return Err(Reason::HeadTooLarge);
                    }
                    self.table.resize(size);
                }
                // 6.2.2 Literal without indexing, 6.2.3 never indexed
                _ => {
                    let field = self.literal(&mut input, 4, list)?;
                    add(list, field)?;
                }
            }
        }
        Ok(())
    }

    fn literal(&self, input: &mut Input<'_>, prefix: u8, list: &mut FieldList) -> Result<Field, Reason> {
        let name = match input.integer(prefix)? {
            0 => input.string(list)?,
            index => list.push(self.table.get(index).ok_or(BAD_INDEX)?.0)?,
        };
        Ok(Field { name, value: input.string(list)? })
    }
}

fn add(list: &mut FieldList, field: Field) -> Result<(), Reason> {
    if list.fields.len() == MOST_FIELDS {
        return Err(Reason::HeadTooLarge);
    }
    list.fields.push(field);
    Ok(())
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// 5.1, with the value bounded well above anything that is used.
    fn integer(&mut self, prefix: u8) -> Result<usize, Reason> {
        let mask = (1_u8 << prefix) - 1;
        let (first, rest) = self.0.split_first().ok_or(CUT_SHORT)?;
        self.0 = rest;
        let mut value = usize::from(first & mask);
        if value < usize::from(mask) {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let (byte, rest) = self.0.split_first().ok_or(CUT_SHORT)?;
            self.0 = rest;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Reason::Malformed("an HPACK integer above 2^28"))
    }

    /// 5.2
    fn string(&mut self, list: &mut FieldList) -> Result<Span, Reason> {
        let coded = self.0.first().ok_or(CUT_SHORT)? & 0x80 != 0;
        let length = self.integer(7)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(CUT_SHORT)?;
        self.0 = rest;
        if !coded {
            return list.push(bytes);
        }
        let start = list.bytes.len();
        // The shortest code has 5 bits, so a string grows by no more than 8/5.
        list.room(0)?;
        huffman::decode(bytes, &mut list.bytes)?;
        list.room(0)?;
        Ok(Span::new(start, list.bytes.len()))
    }
}

const MOST_FIELDS: usize = 1024;
const BAD_INDEX: Reason = Reason::Malformed("an HPACK index outside the tables");
const CUT_SHORT: Reason = Reason::Malformed("a header block cut short");

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex"))
            .collect()
    }

    fn decode(decoder: &mut Decoder, block: &str) -> String {
        let mut list = FieldList::default();
        decoder.decode(&hex(block), &mut list).expect("a valid block");
        list.all().iter().fold(String::new(), |text, (name, value)| {
            format!("{text}{name}: {}\n", String::from_utf8_lossy(value))
        })
    }

    fn fails(block: &[u8]) -> Reason {
        Decoder::default().decode(block, &mut FieldList::default()).expect_err("an invalid block")
    }

    #[test]
    fn rfc_7541_c_2_field_representations() {
        let literal = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
        for (block, text, size) in [
            (literal, "custom-key: custom-header\n", 55),
            ("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path\n", 0),
            ("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret\n", 0),
            ("82", ":method: GET\n", 0),
        ] {
            let mut decoder = Decoder::default();
            assert_eq!(decode(&mut decoder, block), text);
            assert_eq!(decoder.table.size(), size);
        }
    }

    #[test]
    fn rfc_7541_c_3_and_c_4_requests() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let huffman = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, huffman] {
            let mut decoder = Decoder::default();
            let first = ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n";
            assert_eq!(decode(&mut decoder, blocks[0]), first);
            assert_eq!(decoder.table.size(), 57);
            assert_eq!(decode(&mut decoder, blocks[1]), format!("{first}cache-control: no-cache\n"));
            assert_eq!(decoder.table.size(), 110);
            assert_eq!(
                decode(&mut decoder, blocks[2]),
                ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value\n"
            );
            assert_eq!(decoder.table.size(), 164);
        }
    }

    #[test]
    fn rfc_7541_c_5_and_c_6_responses_with_eviction() {
        let plain = [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 \
             3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 \
             7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 \
             6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
        ];
        let huffman = [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad \
             1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 \
             e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ];
        for blocks in [plain, huffman] {
            let mut decoder = Decoder::default();
            decoder.table.resize(256);
            let rest = "cache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com\n";
            assert_eq!(decode(&mut decoder, blocks[0]), format!(":status: 302\n{rest}"));
            assert_eq!(decoder.table.size(), 222);
            assert_eq!(decode(&mut decoder, blocks[1]), format!(":status: 307\n{rest}"));
            assert_eq!(decoder.table.size(), 222);
            assert_eq!(
                decode(&mut decoder, blocks[2]),
                ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\n\
                 location: https://www.example.com\ncontent-encoding: gzip\n\
                 set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\n"
            );
            assert_eq!(decoder.table.size(), 215);
        }
    }

    #[test]
    fn rfc_7541_c_1_integers() {
        assert_eq!(Input(&[0x0a]).integer(5), Ok(10));
        assert_eq!(Input(&[0x1f, 0x9a, 0x0a]).integer(5), Ok(1337));
        assert_eq!(Input(&[0x2a]).integer(8 - 1), Ok(42));
        assert!(Input(&[0x7f, 0xff, 0xff, 0xff, 0xff, 0x0f]).integer(7).is_err());
    }

    #[test]
    fn broken_blocks_are_refused() {
        assert_eq!(fails(&[0x80]), BAD_INDEX);
        assert_eq!(fails(&[0xbe]), BAD_INDEX);
        assert_eq!(fails(&[0x40]), CUT_SHORT);
        assert_eq!(fails(&[0x40, 0x05, b'a']), CUT_SHORT);
        assert_eq!(fails(&[0x82, 0x20]), Reason::Malformed("an HPACK size update after a field"));
        assert_eq!(fails(&[0x3f, 0xff, 0xff, 0x07]), Reason::HeadTooLarge);
    }

    #[test]
    fn a_small_block_that_expands_without_end_is_refused() {
        // One entry of almost 4 KiB, then references to it of one byte each.
        let mut bomb = vec![0x40, 0x01, b'a', 0x7f, 0xa1, 0x1e];
        bomb.extend(std::iter::repeat_n(b'x', 4000));
        bomb.extend(std::iter::repeat_n(0xbe, 10_000));
        assert_eq!(fails(&bomb), Reason::HeadTooLarge);
        assert_eq!(fails(&[0x82; 1025]), Reason::HeadTooLarge);
    }

    #[test]
    fn a_size_update_to_nothing_empties_the_table() {
        let mut decoder = Decoder::default();
        decode(&mut decoder, "400161 0162");
        assert_eq!(decoder.table.size(), 34);
        decode(&mut decoder, "20 82");
        assert_eq!(decoder.table.size(), 0);
        decode(&mut decoder, "400161 0162");
        assert_eq!(decoder.table.size(), 0);
    }
}

//! A rule of somebody else's, as far as we can read it.
//!
//! Expressions that are not understood are never guessed: what they load is unknown, what they ask is
//! undecided, and a verdict of theirs may be any.

use crate::{
    netlink::{Attributes, text, u32_be},
    nft::code::{
        DATA_VALUE, DATA_VERDICT, EXPRESSION_DATA, EXPRESSION_NAME, RULE_EXPRESSIONS,
        VERDICT_CHAIN, VERDICT_CODE,
    },
};

/// Bytes that registers hold.
pub(super) const REGISTERS: usize = 64;

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Fills a register.
    Load { register: usize, source: Source },
    /// Asks whether a register equals, or does not equal, these bytes.
    Equal {
        register: usize,
        bytes: Vec<u8>,
        sense: bool,
    },
    /// `target = source & mask ^ xor`.
    Mask {
        source: usize,
        target: usize,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Asks whether a set has what a register holds; a map of verdicts gives one.
    Lookup {
        register: usize,
        set: String,
        sense: bool,
        is_map: bool,
    },
    /// Says what becomes of the packet.
    Verdict(Verdict),
    /// Asks something that we cannot answer.
    Undecided,
    /// Has no say in what becomes of the packet.
    Passes,
}

/// What a register is filled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// `NFT_META_*`.
    Meta(u32),
    /// `NFT_CT_*`.
    Ct(u32),
    /// Bytes of the packet: base (`NFT_PAYLOAD_*`), offset, length.
    Payload(u32, u32, u32),
    /// These bytes.
    Bytes(Vec<u8>),
    /// Something that we do not know.
    Unknown,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This hook has no more to say in this table.
    Accept,
    /// The packet is gone.
    Drop,
    /// The rest of this chain is passed over.
    Return,
    /// On in another chain, then here.
    Jump(String),
    /// On in another chain, not here.
    Goto(String),
    /// Any of them.
    Any,
}

/// Reads a rule's expressions.
pub(super) fn steps(rule: Attributes<'_>) -> Vec<Step> {
    rule.nest(RULE_EXPRESSIONS)
        .map(|(_, expression)| step(Attributes::new(expression)))
        .collect()
}

fn step(expression: Attributes<'_>) -> Step {
    let data = expression.nest(EXPRESSION_DATA);
    let name = expression.find(EXPRESSION_NAME).and_then(text);

    match name.unwrap_or_default() {
        "meta" => load(data, 1, |data| {
            data.find(2).and_then(u32_be).map(Source::Meta)
        }),
        "ct" => load(data, 1, |data| {
            // The value of one direction alone is another one.
            let whole = data.find(3).is_none();
            let key = data.find(2).and_then(u32_be);

            key.filter(|_| whole).map(Source::Ct)
        }),
        "payload" => load(data, 1, |data| {
            let number = |kind| data.find(kind).and_then(u32_be);

            Some(Source::Payload(number(2)?, number(3)?, number(4)?))
        }),
        "immediate" => immediate(data),
        "cmp" => compare(data).unwrap_or(Step::Undecided),
        "bitwise" => mask(data).unwrap_or_else(|| load(data, 2, |_| None)),
        "lookup" => lookup(data).unwrap_or(Step::Undecided),
        "counter" | "log" | "notrack" | "quota" | "objref" | "dynset" | "last" | "dup" | "nat"
        | "masq" | "redir" | "tproxy" => Step::Passes,
        "reject" => Step::Verdict(Verdict::Drop),
        "queue" | "fwd" | "synproxy" => Step::Verdict(Verdict::Any),
        "target" => target(data),
        "fib" | "rt" | "exthdr" | "numgen" | "osf" | "xfrm" => load(data, 1, |_| None),
        "socket" | "hash" | "tunnel" | "byteorder" => load(data, 2, |_| None),
        // `range`, `limit`, `connlimit`, xtables' `match`, and whatever is new.
        _ => Step::Undecided,
    }
}

/// Reads an expression that fills the register which attribute `kind` names; one without it sets something.
fn load(
    data: Attributes<'_>,
    kind: u16,
    source: impl FnOnce(Attributes<'_>) -> Option<Source>,
) -> Step {
    match data.find(kind).and_then(u32_be).and_then(place) {
        Some(register) => Step::Load {
            register,
            source: source(data).unwrap_or(Source::Unknown),
        },
        None => Step::Passes,
    }
}

fn immediate(data: Attributes<'_>) -> Step {
    let value = data.nest(2);
    if value.find(DATA_VERDICT).is_some() {
        return Step::Verdict(verdict(value.nest(DATA_VERDICT)));
    }

    load(data, 1, |_| {
        value
            .find(DATA_VALUE)
            .map(|bytes| Source::Bytes(bytes.to_vec()))
    })
}

/// Reads a verdict: code and chain.
pub(super) fn verdict(verdict: Attributes<'_>) -> Verdict {
    /// `NFT_CONTINUE`, `NFT_BREAK`, `NFT_JUMP`, `NFT_GOTO`, `NFT_RETURN` of nf_tables.h.
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    const RETURN: i32 = -5;

    let code = verdict.find(VERDICT_CODE).and_then(u32_be);
    let chain = verdict
        .find(VERDICT_CHAIN)
        .and_then(text)
        .map(str::to_owned);

    match (code.map(u32::cast_signed), chain) {
        (Some(libc::NF_ACCEPT), _) => Verdict::Accept,
        (Some(libc::NF_DROP), _) => Verdict::Drop,
        (Some(RETURN), _) => Verdict::Return,
        (Some(JUMP), Some(chain)) => Verdict::Jump(chain),
        (Some(GOTO), Some(chain)) => Verdict::Goto(chain),
        (_, _) => Verdict::Any,
    }
}

fn compare(data: Attributes<'_>) -> Option<Step> {
    let operation = data.find(2).and_then(u32_be)?;
    let register = data.find(1).and_then(u32_be).and_then(place)?;
    let bytes = data.nest(3).find(DATA_VALUE)?.to_vec();

    // `NFT_CMP_EQ`, `NFT_CMP_NEQ`; the others compare ranges.
    (operation <= 1).then_some(Step::Equal {
        register,
        bytes,
        sense: operation == 0,
    })
}

fn mask(data: Attributes<'_>) -> Option<Step> {
    /// `NFTA_BITWISE_OP`: anything but the plain form (`NFT_BITWISE_MASK_XOR`).
    const OPERATION: u16 = 6;

    if data.find(OPERATION).and_then(u32_be).unwrap_or(0) != 0 {
        return None;
    }

    Some(Step::Mask {
        source: data.find(1).and_then(u32_be).and_then(place)?,
        target: data.find(2).and_then(u32_be).and_then(place)?,
        mask: data.nest(4).find(DATA_VALUE)?.to_vec(),
        xor: data.nest(5).find(DATA_VALUE)?.to_vec(),
    })
}

fn lookup(data: Attributes<'_>) -> Option<Step> {
    /// `NFT_LOOKUP_F_INV`, and the register of verdicts.
    const INVERTED: u32 = 1;
    const VERDICT: u32 = 0;

    let target = data.find(3).and_then(u32_be);
    let step = Step::Lookup {
        register: data.find(2).and_then(u32_be).and_then(place)?,
        set: data.find(1).and_then(text)?.to_owned(),
        sense: data.find(5).and_then(u32_be).unwrap_or(0) & INVERTED == 0,
        is_map: target == Some(VERDICT),
    };

    // A map of values answers whether it has the key, and with what we do not know.
    Some(match target {
        Some(VERDICT) | None => step,
        Some(_) => Step::Undecided,
    })
}

/// Reads a target of xtables' that nf_tables has no words for.
fn target(data: Attributes<'_>) -> Step {
    match data.find(1).and_then(text).unwrap_or_default() {
        "REJECT" => Step::Verdict(Verdict::Drop),
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "CT" | "TCPMSS" | "DSCP" | "TOS" | "TTL" | "HL"
        | "MASQUERADE" | "DNAT" | "SNAT" | "REDIRECT" | "CHECKSUM" | "CLASSIFY" | "TRACE" => {
            Step::Passes
        }
        _ => Step::Verdict(Verdict::Any),
    }
}

/// Returns where a register begins: 16-byte registers 1 to 4 and 4-byte ones from 8 are the same bytes.
fn place(register: u32) -> Option<usize> {
    let place = match register {
        1..=4 => (register - 1) * 16,
        8..=23 => (register - 8) * 4,
        _ => return None,
    };

    usize::try_from(place).ok()
}

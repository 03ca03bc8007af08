//! Numbers of linux/netfilter/nf_tables.h, named as there without their prefix.

/// `NFNL_SUBSYS_NFTABLES << 8`: the upper byte of every message type.
pub(crate) const SUBSYSTEM: u16 = 10 << 8;

/// Begin and end of a transaction (linux/netfilter/nfnetlink.h).
pub(crate) const BATCH_BEGIN: u16 = 0x10;
pub(crate) const BATCH_END: u16 = 0x11;
/// Commit only in this generation (`NFNL_BATCH_GENID`).
pub(crate) const BATCH_GENERATION: u16 = 1;

pub(crate) const NEW_TABLE: u16 = SUBSYSTEM;
pub(crate) const GET_TABLE: u16 = SUBSYSTEM | 1;
pub(crate) const DEL_TABLE: u16 = SUBSYSTEM | 2;
pub(crate) const NEW_CHAIN: u16 = SUBSYSTEM | 3;
pub(crate) const GET_CHAIN: u16 = SUBSYSTEM | 4;
pub(crate) const DEL_CHAIN: u16 = SUBSYSTEM | 5;
pub(crate) const NEW_RULE: u16 = SUBSYSTEM | 6;
pub(crate) const GET_RULE: u16 = SUBSYSTEM | 7;
pub(crate) const DEL_RULE: u16 = SUBSYSTEM | 8;
pub(crate) const NEW_SET: u16 = SUBSYSTEM | 9;
pub(crate) const GET_SET: u16 = SUBSYSTEM | 10;
pub(crate) const DEL_SET: u16 = SUBSYSTEM | 11;
pub(crate) const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
pub(crate) const GET_ELEMENT: u16 = SUBSYSTEM | 13;
pub(crate) const DEL_ELEMENT: u16 = SUBSYSTEM | 14;
pub(crate) const NEW_GENERATION: u16 = SUBSYSTEM | 15;
pub(crate) const GET_GENERATION: u16 = SUBSYSTEM | 16;

pub(crate) const GENERATION_ID: u16 = 1;

pub(crate) const TABLE_NAME: u16 = 1;
pub(crate) const TABLE_FLAGS: u16 = 2;
pub(crate) const TABLE_OWNER: u16 = 7;
/// Only the socket that owns it may change it.
pub(crate) const TABLE_F_OWNER: u32 = 2;
/// It stays when its owner goes (since Linux 6.9).
pub(crate) const TABLE_F_PERSIST: u32 = 4;

pub(crate) const CHAIN_TABLE: u16 = 1;
pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const CHAIN_HOOK: u16 = 4;
pub(crate) const CHAIN_POLICY: u16 = 5;
pub(crate) const CHAIN_TYPE: u16 = 7;

pub(crate) const HOOK_NUMBER: u16 = 1;
pub(crate) const HOOK_PRIORITY: u16 = 2;
pub(crate) const HOOK_DEVICE: u16 = 3;
pub(crate) const HOOK_DEVICES: u16 = 4;
pub(crate) const DEVICE_NAME: u16 = 1;

pub(crate) const RULE_TABLE: u16 = 1;
pub(crate) const RULE_CHAIN: u16 = 2;
pub(crate) const RULE_HANDLE: u16 = 3;
pub(crate) const RULE_EXPRESSIONS: u16 = 4;
pub(crate) const RULE_POSITION: u16 = 6;
pub(crate) const RULE_USERDATA: u16 = 7;

pub(crate) const SET_TABLE: u16 = 1;
pub(crate) const SET_NAME: u16 = 2;
pub(crate) const SET_FLAGS: u16 = 3;
pub(crate) const SET_KEY_TYPE: u16 = 4;
pub(crate) const SET_KEY_LENGTH: u16 = 5;
pub(crate) const SET_DATA_TYPE: u16 = 6;
pub(crate) const SET_ID: u16 = 10;
pub(crate) const SET_USERDATA: u16 = 13;
/// Elements are ranges.
pub(crate) const SET_F_INTERVAL: u32 = 4;
/// Keys have data.
pub(crate) const SET_F_MAP: u32 = 8;
/// Properties that our sets never have: anonymous, constant, timeout, evaluated, object, concatenated.
pub(crate) const SET_F_FOREIGN: u32 = !(SET_F_INTERVAL | SET_F_MAP);
/// The data of a map are verdicts (`NFT_DATA_VERDICT`).
pub(crate) const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

pub(crate) const LIST_TABLE: u16 = 1;
pub(crate) const LIST_SET: u16 = 2;
pub(crate) const LIST_ELEMENTS: u16 = 3;
pub(crate) const LIST_ELEMENT: u16 = 1;

pub(crate) const ELEMENT_KEY: u16 = 1;
pub(crate) const ELEMENT_DATA: u16 = 2;
pub(crate) const ELEMENT_FLAGS: u16 = 3;
/// The end of a range, itself outside.
pub(crate) const ELEMENT_F_INTERVAL_END: u32 = 1;

pub(crate) const DATA_VALUE: u16 = 1;
pub(crate) const DATA_VERDICT: u16 = 2;
pub(crate) const VERDICT_CODE: u16 = 1;
pub(crate) const VERDICT_CHAIN: u16 = 2;

pub(crate) const EXPRESSION_NAME: u16 = 1;
pub(crate) const EXPRESSION_DATA: u16 = 2;

/// The first of the 16-byte registers; register 0 is the verdict.
pub(crate) const REGISTER_VERDICT: u32 = 0;
pub(crate) const REGISTER_1: u32 = 1;
/// The next: a key made of two parts begins in the first and goes on here.
pub(crate) const REGISTER_2: u32 = 2;
/// The first of the 4-byte registers (`NFT_REG32_00`), which share their bytes with the 16-byte ones.
/// `NFT_REG_3`: 16 bytes.
pub(crate) const REGISTER_3: u32 = 3;
pub(crate) const REGISTER_32: u32 = 8;

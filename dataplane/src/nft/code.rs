//! Numbers of linux/netfilter/nf_tables.h, named as there without their prefix.

/// `NFNL_SUBSYS_NFTABLES << 8`: the upper byte of every message type.
pub(super) const SUBSYSTEM: u16 = 10 << 8;

/// Begin and end of a transaction (linux/netfilter/nfnetlink.h).
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;

pub(super) const NEW_TABLE: u16 = SUBSYSTEM;
pub(super) const GET_TABLE: u16 = SUBSYSTEM | 1;
pub(super) const DEL_TABLE: u16 = SUBSYSTEM | 2;
pub(super) const NEW_CHAIN: u16 = SUBSYSTEM | 3;
pub(super) const GET_CHAIN: u16 = SUBSYSTEM | 4;
pub(super) const DEL_CHAIN: u16 = SUBSYSTEM | 5;
pub(super) const NEW_RULE: u16 = SUBSYSTEM | 6;
pub(super) const GET_RULE: u16 = SUBSYSTEM | 7;
pub(super) const DEL_RULE: u16 = SUBSYSTEM | 8;
pub(super) const NEW_SET: u16 = SUBSYSTEM | 9;
pub(super) const GET_SET: u16 = SUBSYSTEM | 10;
pub(super) const DEL_SET: u16 = SUBSYSTEM | 11;
pub(super) const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
pub(super) const GET_ELEMENT: u16 = SUBSYSTEM | 13;
pub(super) const DEL_ELEMENT: u16 = SUBSYSTEM | 14;
pub(super) const GET_GENERATION: u16 = SUBSYSTEM | 16;

pub(super) const GENERATION_ID: u16 = 1;

pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
/// Only the socket that owns it may change it.
pub(super) const TABLE_F_OWNER: u32 = 2;
/// It stays when its owner goes (since Linux 6.9).
pub(super) const TABLE_F_PERSIST: u32 = 4;

pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;

pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;
pub(super) const HOOK_DEVICE: u16 = 3;
pub(super) const HOOK_DEVICES: u16 = 4;
pub(super) const DEVICE_NAME: u16 = 1;

pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;

pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LENGTH: u16 = 5;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_USERDATA: u16 = 13;
/// Elements are ranges.
pub(super) const SET_F_INTERVAL: u32 = 4;
/// Properties that our sets never have: anonymous, constant, map, timeout, evaluated, object, concatenated.
pub(super) const SET_F_FOREIGN: u32 = !SET_F_INTERVAL;

pub(super) const LIST_TABLE: u16 = 1;
pub(super) const LIST_SET: u16 = 2;
pub(super) const LIST_ELEMENTS: u16 = 3;
pub(super) const LIST_ELEMENT: u16 = 1;

pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_FLAGS: u16 = 3;
/// The end of a range, itself outside.
pub(super) const ELEMENT_F_INTERVAL_END: u32 = 1;

pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;

pub(super) const EXPRESSION_NAME: u16 = 1;
pub(super) const EXPRESSION_DATA: u16 = 2;

/// The first of the 16-byte registers; register 0 is the verdict.
pub(super) const REGISTER_VERDICT: u32 = 0;
pub(super) const REGISTER_1: u32 = 1;
/// The next: a key made of two parts begins in the first and goes on here.
pub(super) const REGISTER_2: u32 = 2;

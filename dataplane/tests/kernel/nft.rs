//! Our tables against `nft list`.

//! The end of our tables.

use super::{NftError, NftTarget, Transaction};
use model::nft::NftFamily;

impl NftTarget {
    /// Deletes our tables, whatever is in them, in one transaction; none there is no error.
    pub(crate) fn remove_tables(&mut self) -> Result<(), NftError> {
        let present = self.present_tables()?;
        if present.is_empty() {
            return Ok(());
        }
        let mut transaction = Transaction::default();
        for family in present {
            transaction.delete_table(family);
        }
        self.commit(transaction)?;
        self.held = super::Ruleset::default();

        Ok(())
    }

    /// Names our tables that exist, as `nft` does.
    pub(crate) fn table_names(&mut self) -> Result<Vec<&'static str>, NftError> {
        let present = self.present_tables()?;

        Ok(present
            .into_iter()
            .map(|family| match family {
                NftFamily::Inet => "inet meshd",
                NftFamily::Netdev => "netdev meshd",
            })
            .collect())
    }
}

//! Who may become a member, and which certificates are good: tokens and serial numbers.

use jiff::{Timestamp, ToSpan};
use model::{Kind, NodeName, Object, ObjectKey, constant::RECORD_ANNOTATION};
use rusqlite::{OptionalExtension, Row, params};
use serde_json::json;
use subtle::ConstantTimeEq;

use super::{
    Embedded,
    write::{create, remove_belongings},
    writer::Writing,
};
use crate::{
    Caller, Identity, StoreError, Token, TokenEntry, TokenRequest,
    certificate::{Past, Signed},
    token::TTL_MAX,
};

/// Tokens that may be open at once.
const TOKENS_MAX: i64 = 10_000;

/// Certificates of one node that are good at once: it renews every 16 hours.
const CERTIFICATES_MAX: i64 = 32;

/// What a host shows to be admitted.
pub(crate) struct Admission {
    pub(crate) token: Token,
    /// The wished name.
    pub(crate) name: Option<NodeName>,
    /// SHA-256 of the public key that the certificate is for, hex.
    pub(crate) key_hash: String,
}

/// A token's row.
struct TokenRow {
    hash: Vec<u8>,
    node: Option<String>,
    replace: bool,
    expires: i64,
    used_by: Option<String>,
    used_key: Option<String>,
}

impl Embedded {
    /// Keeps a token's hash.
    pub(crate) async fn add_token(
        &self,
        token: &Token,
        request: &TokenRequest,
    ) -> Result<Timestamp, StoreError> {
        if request.ttl.is_zero() || request.ttl > TTL_MAX {
            return Err(StoreError::invalid(
                "ttl",
                "expected more than 0 and at most 30 days",
            ));
        }
        let ttl = i64::try_from(request.ttl.as_secs())
            .map_err(|_| StoreError::invalid("ttl", "expected at most 30 days"))?;
        let (id, hash) = (token.id().to_owned(), token.hash());
        let node = request.node.as_ref().map(|node| node.as_str().to_owned());
        let replace = request.replace;

        self.writer
            .write(move |writing| {
                forget_old(writing)?;
                let open: i64 =
                    writing
                        .connection
                        .query_row("SELECT count(*) FROM token", (), |row| row.get(0))?;
                if open >= TOKENS_MAX {
                    let limit = TOKENS_MAX as usize;
                    return Err(StoreError::TooMany {
                        what: "tokens".to_owned(),
                        limit,
                    });
                }
                let expires = writing.now + ttl.seconds();
                writing
                    .connection
                    .prepare_cached(
                        "INSERT INTO token (id, hash, node, replaces, expires)
                         VALUES (?, ?, ?, ?, ?)",
                    )?
                    .execute(params![id, hash, node, replace, expires.as_second()])?;

                Ok(expires)
            })
            .await
    }

    /// Lists the tokens that are kept.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenEntry>, StoreError> {
        let sql = "SELECT id, node, replaces, expires, used_by FROM token ORDER BY expires, id";
        let rows =
            self.readers
                .read(|connection| {
                    connection
                    .prepare_cached(sql)?
                    .query_map((), |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
                    })?
                    .collect::<rusqlite::Result<Vec<(_, Option<String>, _, i64, Option<String>)>>>()
                })
                .await?;
        let stored = |what: String| StoreError::Internal(format!("a stored token: {what}"));
        let name = |text: Option<String>| {
            text.map(|text| text.parse::<NodeName>())
                .transpose()
                .map_err(|e| stored(e.to_string()))
        };

        rows.into_iter()
            .map(|(id, node, replace, expires, used_by)| {
                let expires =
                    Timestamp::from_second(expires).map_err(|error| stored(error.to_string()))?;
                Ok(TokenEntry {
                    id,
                    node: name(node)?,
                    replace,
                    expires,
                    used_by: name(used_by)?,
                })
            })
            .collect()
    }

    /// Forgets a token.
    pub(crate) async fn delete_token(&self, id: String) -> Result<(), StoreError> {
        self.writer
            .write(move |writing| {
                let deleted = writing
                    .connection
                    .prepare_cached("DELETE FROM token WHERE id = ?")?
                    .execute([&id])?;
                match deleted {
                    0 => Err(StoreError::invalid(
                        "id",
                        format!("there is no token {id:.64}"),
                    )),
                    _ => Ok(()),
                }
            })
            .await
    }

    /// Admits a host: checks and uses up its token, makes its Node, and notes its certificate.
    ///
    /// All of it happens or none: a token is used up only where the host gets its certificate.
    /// `sign` makes the certificate once the name is known.
    pub(crate) async fn admit(
        &self,
        admission: Admission,
        sign: impl FnOnce(&NodeName) -> Result<Signed, StoreError> + Send + 'static,
    ) -> Result<(NodeName, Signed), StoreError> {
        self.writer
            .write(move |writing| {
                let id = admission.token.id().to_owned();
                let row = token(writing, &id)?.ok_or_else(unknown)?;
                let name = name(&row, &admission, writing.now)?;
                if row.used_by.is_none() {
                    enter(writing, &name, row.replace)?;
                    writing
                        .connection
                        .prepare_cached("UPDATE token SET used_by = ?, used_key = ? WHERE id = ?")?
                        .execute(params![name.as_str(), admission.key_hash, id])?;
                }
                let signed = sign(&name)?;
                note(writing, &Identity::Node(name.clone()), &signed)?;

                Ok((name, signed))
            })
            .await
    }

    /// Notes an administrator's certificate.
    pub(crate) async fn note_certificate(
        &self,
        identity: Identity,
        signed: Signed,
    ) -> Result<(), StoreError> {
        self.writer
            .write(move |writing| note(writing, &identity, &signed))
            .await
    }

    /// Ends every administrator's certificate.
    pub(crate) async fn revoke_administrators(&self) -> Result<(), StoreError> {
        self.writer
            .write(|writing| revoke(writing, "admin", "admin"))
            .await
    }

    /// Notes a certificate that was signed for whoever showed a good one.
    pub(crate) async fn note_renewed(
        &self,
        identity: Identity,
        shown: String,
        signed: Signed,
    ) -> Result<(), StoreError> {
        self.writer
            .write(move |writing| {
                check_good(writing, Some(&shown))?;
                if let Identity::Node(name) = &identity {
                    let key = ObjectKey::cluster(Kind::Node, name.as_str());
                    if writing.object(&key)?.is_none() {
                        return Err(StoreError::NotFound(key));
                    }
                }
                note(writing, &identity, &signed)
            })
            .await
    }

    /// Returns whether a certificate may be used: we signed it, and nobody revoked it.
    pub(crate) async fn is_good(&self, serial: String) -> Result<bool, StoreError> {
        let sql = "SELECT revoked FROM certificate WHERE serial = ?";
        let revoked: Option<bool> = self
            .readers
            .read(move |connection| {
                connection
                    .prepare_cached(sql)?
                    .query_row([serial], |row| row.get(0))
                    .optional()
            })
            .await?;

        Ok(revoked == Some(false))
    }

    /// Returns whether a certificate was ever signed: from then on the CA must not be made anew.
    pub(crate) async fn past(&self) -> Result<Past, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM certificate)
                       OR EXISTS (SELECT 1 FROM meta WHERE name = 'revision' AND value > 1)";
        let signed: bool = self
            .readers
            .read(move |connection| connection.query_row(sql, (), |row| row.get(0)))
            .await?;

        Ok(if signed { Past::Signed } else { Past::Blank })
    }

    /// Returns a number that rises whenever certificates were revoked.
    pub(crate) fn revocations(&self) -> tokio::sync::watch::Receiver<u64> {
        self.revocations.clone()
    }
}

/// Checks, within the transaction, that the certificate a caller showed is still good.
pub(super) fn check_good(writing: &Writing<'_>, shown: Option<&str>) -> Result<(), StoreError> {
    let Some(serial) = shown else { return Ok(()) };
    let revoked: Option<bool> = writing
        .connection
        .prepare_cached("SELECT revoked FROM certificate WHERE serial = ?")?
        .query_row([serial], |row| row.get(0))
        .optional()?;
    if revoked == Some(false) {
        return Ok(());
    }

    Err(StoreError::Unauthenticated(
        "the certificate was revoked".to_owned(),
    ))
}

/// Ends every certificate of a name, and the tokens it came by: a used one is answered again only
/// while its holder is a member.
pub(super) fn revoke(writing: &mut Writing<'_>, role: &str, name: &str) -> Result<(), StoreError> {
    let mut statement = writing.connection.prepare_cached(
        "UPDATE certificate SET revoked = 1 WHERE role = ? AND name = ? AND revoked = 0",
    )?;
    writing.revoked += statement.execute([role, name])?;
    writing
        .connection
        .prepare_cached("DELETE FROM token WHERE used_by = ?")?
        .execute([name])?;

    Ok(())
}

/// Makes the Node of a host that was admitted.
fn enter(writing: &mut Writing<'_>, name: &NodeName, replace: bool) -> Result<(), StoreError> {
    let key = ObjectKey::cluster(Kind::Node, name.as_str());
    let Some(old) = writing.object(&key)? else {
        // A name may have certificates from before its Node was deleted.
        revoke(writing, "node", name.as_str())?;
        create(
            writing,
            &Caller::local_admin(),
            Object::new(&key, json!({})),
        )?;
        return Ok(());
    };
    if !replace {
        return Err(StoreError::invalid(
            "name",
            format!("{name} is in use; to hand it to another host, make a token with --replace"),
        ));
    }
    revoke(writing, "node", name.as_str())?;
    remove_belongings(writing, name.as_str())?;

    writing.put(without_own_words(old)).map(|_| ())
}

/// Returns a Node as its administrator made it: without what the host said of itself.
///
/// The new host begins its record anew; an old epoch would keep it from being heard.
fn without_own_words(mut node: Object) -> Object {
    node.body.remove("status");
    node.metadata.annotations.remove(RECORD_ANNOTATION);
    if let Some(spec) = node
        .body
        .get_mut("spec")
        .and_then(|spec| spec.as_object_mut())
    {
        spec.remove("wireguard");
        spec.remove("addresses");
        if let Some(bgp) = spec.get_mut("bgp").and_then(|bgp| bgp.as_object_mut()) {
            bgp.remove("ipv4Address");
            bgp.remove("ipv6Address");
        }
    }

    node
}

/// Checks a token, and returns the name that it admits.
fn name(row: &TokenRow, admission: &Admission, now: Timestamp) -> Result<NodeName, StoreError> {
    let fits: bool = admission.token.hash()[..].ct_eq(&row.hash).into();
    if !fits {
        return Err(unknown());
    }
    if row.expires <= now.as_second() {
        return Err(StoreError::Unauthenticated(
            "the token has expired".to_owned(),
        ));
    }
    if row.used_by.is_some() && row.used_key.as_deref() != Some(&admission.key_hash) {
        return Err(StoreError::Unauthenticated(
            "the token has been used".to_owned(),
        ));
    }
    let stored = row.used_by.as_ref().or(row.node.as_ref());
    let bound: Option<NodeName> = stored
        .map(|name| name.parse())
        .transpose()
        .map_err(|error| StoreError::Internal(format!("a stored token: {error}")))?;

    match (bound, &admission.name) {
        (Some(bound), Some(wished)) if bound != *wished => {
            let message = format!("the token is for {bound}, not for {wished}");
            Err(StoreError::invalid("name", message))
        }
        (Some(bound), _) => Ok(bound),
        (None, Some(wished)) => Ok(wished.clone()),
        (None, None) => {
            let message = "the token names no node: say which";
            Err(StoreError::invalid(crate::enrol::NAME_FIELD, message))
        }
    }
}

fn unknown() -> StoreError {
    StoreError::Unauthenticated("the server does not know this token".to_owned())
}

fn token(writing: &Writing<'_>, id: &str) -> Result<Option<TokenRow>, StoreError> {
    let read = |row: &Row<'_>| {
        Ok(TokenRow {
            hash: row.get(0)?,
            node: row.get(1)?,
            replace: row.get(2)?,
            expires: row.get(3)?,
            used_by: row.get(4)?,
            used_key: row.get(5)?,
        })
    };

    Ok(writing
        .connection
        .prepare_cached(
            "SELECT hash, node, replaces, expires, used_by, used_key FROM token WHERE id = ?",
        )?
        .query_row([id], read)
        .optional()?)
}

fn note(writing: &mut Writing<'_>, identity: &Identity, signed: &Signed) -> Result<(), StoreError> {
    forget_old(writing)?;
    if let Identity::Node(name) = identity {
        check_certificates(writing, name)?;
    }
    writing
        .connection
        .prepare_cached(
            "INSERT INTO certificate (serial, role, name, expires) VALUES (?, ?, ?, ?)",
        )?
        .execute(params![
            signed.serial,
            identity.role(),
            identity.name(),
            signed.not_after.as_second()
        ])?;

    Ok(())
}

/// Checks that a node may have one more certificate.
fn check_certificates(writing: &Writing<'_>, name: &NodeName) -> Result<(), StoreError> {
    let good: i64 = writing
        .connection
        .prepare_cached(
            "SELECT count(*) FROM certificate
             WHERE role = 'node' AND name = ? AND revoked = 0 AND expires > ?",
        )?
        .query_row(params![name.as_str(), writing.now.as_second()], |row| {
            row.get(0)
        })?;
    if good < CERTIFICATES_MAX {
        return Ok(());
    }
    let limit = CERTIFICATES_MAX as usize;

    Err(StoreError::TooMany {
        what: format!("certificates of {name}"),
        limit,
    })
}

/// Forgets tokens and certificates that ended a day ago: TLS refuses the latter by their date.
fn forget_old(writing: &Writing<'_>) -> Result<(), StoreError> {
    let past = writing.now.as_second().saturating_sub(24 * 3600);
    for sql in [
        "DELETE FROM token WHERE expires < ?",
        "DELETE FROM certificate WHERE expires < ?",
    ] {
        writing.connection.prepare_cached(sql)?.execute([past])?;
    }

    Ok(())
}

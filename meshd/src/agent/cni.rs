//! What the CNI plugin asks, in the words of [`model::cni`].
//!
//! ```text
//! POST /v1/cni/add      Attachment  → Attached, once the pod's policy is live
//! POST /v1/cni/del      Attachment  → null, also for what was never there
//! POST /v1/cni/check    Examination → null, once the kernel has what was answered then
//! POST /v1/cni/gc       Survivors   → null
//! POST /v1/cni/status   a network   → null, when pods can be attached
//! ```
//!
//! Everything else is a [`Failure`] with its code.

mod annotation;
mod identity;
mod quantity;
mod request;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ::cni::{Tombstones, tombstone::Tombstone};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use model::{
    action::PodAnswer,
    cni::{
        Address, Attached, Attachment, AttachmentKey, CniName, Code, Examination, Failure,
        Interface, Route, Survivors,
    },
    constant::{POD_GATEWAY_V4, POD_GATEWAY_V6, WORKLOAD_MAC},
};
use tokio::{
    sync::mpsc,
    time::{self, timeout},
};

pub(super) use self::identity::{Examined, Known};
use super::api::{self, Ask};

/// How long a pod's policy may take to be live where the configuration does not say.
const POLICY: Duration = Duration::from_secs(30);

/// How often somebody looks for tombstones: the plugin leaves one while the agent is away, or too slow.
const REPLAY: Duration = Duration::from_secs(5);

type Asks = mpsc::Sender<Ask>;

pub(super) fn routes() -> Router<Asks> {
    Router::new()
        .route("/v1/cni/add", post(add))
        .route("/v1/cni/del", post(del))
        .route("/v1/cni/check", post(check))
        .route("/v1/cni/gc", post(collect))
        .route("/v1/cni/status", post(status))
}

/// Carries out the removals that no agent heard, for as long as the process lives.
pub(super) async fn replay(tombstones: Tombstones, asks: Asks) -> anyhow::Result<()> {
    let mut interval = time::interval(REPLAY);
    loop {
        interval.tick().await;
        let found = match tombstones.list() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "Removals that were noted for later cannot be read");
                continue;
            }
        };
        for stone in found {
            replay_one(&stone, &asks).await;
        }
    }
}

async fn replay_one(stone: &Tombstone, asks: &Asks) {
    let path = stone.path.display();
    let over = match &stone.attachment {
        Ok(attachment) => {
            if let Err(failure) = detach(asks, attachment.key.clone()).await {
                tracing::warn!(%failure, %path, "A removal that was noted for later has to wait");
                return;
            }
            tracing::info!(attachment = %attachment.key, "A removal that was noted for later is done");
            stone.clear()
        }
        Err(error) => {
            tracing::error!(%error, %path, "A removal that was noted for later is not understood; its file is set aside");
            stone.set_aside()
        }
    };
    if let Err(error) = over {
        tracing::warn!(%error, %path, "A removal stays noted");
    }
}

async fn add(State(asks): State<Asks>, Json(attachment): Json<Attachment>) -> Response {
    answer(attach(&asks, &attachment).await)
}

async fn del(State(asks): State<Asks>, Json(attachment): Json<Attachment>) -> Response {
    answer(detach(&asks, attachment.key).await)
}

async fn check(State(asks): State<Asks>, Json(examination): Json<Examination>) -> Response {
    answer(examine(&asks, examination).await)
}

async fn collect(State(asks): State<Asks>, Json(survivors): Json<Survivors>) -> Response {
    let collected = api::ask(&asks, |reply| Ask::Collect(survivors, reply)).await;

    answer(told(collected))
}

async fn status(State(asks): State<Asks>, Json(_network): Json<CniName>) -> Response {
    let ready = told(api::ask(&asks, Ask::Ready).await);

    answer(ready.map_err(|failure| Failure {
        code: Code::Unavailable,
        ..failure
    }))
}

/// A failed `ADD` leaves nothing behind: the runtime takes it for none.
async fn attach(asks: &Asks, attachment: &Attachment) -> Result<Attached, Failure> {
    let name = request::pod_name(attachment)?;
    let known = api::ask(asks, |reply| Ask::Identify(name.clone(), reply))
        .await
        .ok_or_else(|| Failure::new(Code::TryLater, "the agent is going down"))??;
    let request = request::request(attachment, name, &known)?;
    let mac = request.wish.mac;
    let seconds = attachment.wishes.policy_seconds;
    let patience = seconds.map_or(POLICY, |seconds| Duration::from_secs(seconds.into()));
    let pod = request.pod.clone();
    let asked = api::ask(asks, |reply| Ask::AddPod(Box::new(request), reply));
    let failure = match timeout(patience, asked).await {
        Ok(answered) => match told(answered) {
            Ok(pod) => return Ok(attached(attachment, &pod, mac)),
            Err(failure) => failure,
        },
        Err(_) => Failure::new(
            Code::TryLater,
            format!(
                "{pod} has no interface with live policy after {} s; `meshctl status` says what is waited for",
                patience.as_secs()
            ),
        ),
    };
    detach(asks, attachment.key.clone()).await?;

    Err(failure)
}

async fn detach(asks: &Asks, key: AttachmentKey) -> Result<(), Failure> {
    told(api::ask(asks, |reply| Ask::Detach(key, reply)).await)
}

/// The kernel is asked: what it has is compared with what it should have, and with what was answered then.
async fn examine(asks: &Asks, examination: Examination) -> Result<(), Failure> {
    let key = examination.attachment.key.clone();
    let broken = |msg: String| Failure::new(Code::Broken, msg);
    let going = || Failure::new(Code::TryLater, "the agent is going down");
    let now = api::ask(asks, |reply| Ask::Examine(key.clone(), reply))
        .await
        .ok_or_else(going)?
        .ok_or_else(|| broken(format!("{key} is not attached")))?;
    let then = examination.result.ips.iter().map(|ip| ip.address.addr());
    let (then, has) = (then.collect::<BTreeSet<_>>(), now.hosts());
    let mut differences = now.differences;
    let changed = then.symmetric_difference(&has);
    differences.extend(changed.map(|address| format!("{address} was answered then, or is new")));
    let Some(first) = differences.first() else {
        return Ok(());
    };

    Err(Failure {
        details: differences.join("; "),
        ..broken(format!("{}: {first}", now.pod))
    })
}

/// What the loop of the agent answered.
fn told<T>(answered: Option<Result<T, String>>) -> Result<T, Failure> {
    match answered {
        Some(Ok(value)) => Ok(value),
        Some(Err(reason)) => Err(Failure::new(Code::Refused, reason)),
        None => Err(Failure::new(Code::TryLater, "the agent is going down")),
    }
}

fn answer<T: serde::Serialize>(answer: Result<T, Failure>) -> Response {
    match answer {
        Ok(value) => Json(value).into_response(),
        Err(failure) => (StatusCode::CONFLICT, Json(failure)).into_response(),
    }
}

fn attached(attachment: &Attachment, pod: &PodAnswer, mac: Option<[u8; 6]>) -> Attached {
    let written = |mac: [u8; 6]| mac.map(|octet| format!("{octet:02x}")).join(":");
    let host = Interface {
        name: pod.host_interface.clone(),
        mac: written(WORKLOAD_MAC),
        mtu: Some(pod.mtu),
        sandbox: String::new(),
    };
    let inside = Interface {
        name: attachment.key.interface.as_str().to_owned(),
        mac: mac.map(written).unwrap_or_default(),
        mtu: Some(pod.mtu),
        sandbox: attachment.netns.clone().unwrap_or_default(),
    };
    let ips = pod.addresses.iter().map(|address| Address {
        address: *address,
        gateway: None,
        interface: Some(1),
    });
    let routes = pod.addresses.iter().map(|address| match address.addr() {
        IpAddr::V4(_) => Route {
            dst: ipnet::IpNet::new_assert(IpAddr::from([0; 4]), 0),
            gw: Some(POD_GATEWAY_V4.into()),
        },
        IpAddr::V6(_) => Route {
            dst: ipnet::IpNet::new_assert(IpAddr::from([0; 16]), 0),
            gw: Some(POD_GATEWAY_V6.into()),
        },
    });

    Attached {
        interfaces: vec![host, inside],
        ips: ips.collect(),
        routes: routes.collect(),
    }
}

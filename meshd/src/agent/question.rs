//! Questions about policy: why a packet passes or not, and what applies to an endpoint.
//!
//! The loop hands over a copy of what it knows; the answer is worked out beside it, one at a time.

use axum::{
    Json,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use meshd_core::why::{Inquiry, Probe};
use model::resource::FieldError;
use serde::Serialize;
use serde_json::Value;
use tokio::{
    sync::{Semaphore, mpsc},
    task::spawn_blocking,
};

use super::api::{Ask, answer, ask, problem};

/// One answer takes a core for as long as a large cluster needs.
static TURN: Semaphore = Semaphore::const_new(1);

pub(super) async fn why(
    State(asks): State<mpsc::Sender<Ask>>,
    Json(probe): Json<Value>,
) -> Response {
    let probe = match Probe::parse(&probe) {
        Ok(probe) => probe,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()).into_response(),
    };

    respond(&asks, move |inquiry| inquiry.why(&probe)).await
}

pub(super) async fn endpoint(
    State(asks): State<mpsc::Sender<Ask>>,
    UrlPath(name): UrlPath<String>,
) -> Response {
    respond(&asks, move |inquiry| inquiry.show(&name)).await
}

async fn respond<T: Serialize + Send + 'static>(
    asks: &mpsc::Sender<Ask>,
    question: impl FnOnce(&Inquiry) -> Result<T, FieldError> + Send + 'static,
) -> Response {
    // The semaphore is never closed.
    let _turn = TURN.acquire().await;
    let Some(inquiry) = ask(asks, Ask::Inquire).await else {
        return answer::<T>(None);
    };
    match spawn_blocking(move || question(&inquiry)).await {
        Ok(Ok(found)) => answer(Some(Ok(found))),
        Ok(Err(error)) => problem(StatusCode::BAD_REQUEST, &error.to_string()).into_response(),
        Err(error) => {
            tracing::error!(%error, "A question about policy could not be answered");
            problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the answer could not be worked out",
            )
            .into_response()
        }
    }
}

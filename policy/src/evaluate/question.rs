//! What was asked on a packet's way, for whoever wants to know why.

use model::policy::Direction;

use super::tier::Chain;
use crate::{
    cluster::Endpoint,
    decision::{Decision, Point},
    packet::Header,
};

/// A question that was put to an endpoint's tiers.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// The endpoint: `NAMESPACE/POD`, or `node/NODE INTERFACE`.
    pub(crate) name: String,
    /// The endpoint, with its labels.
    pub(crate) endpoint: Endpoint,
    /// Which of its policies were asked.
    pub(crate) chain: Chain,
    /// In which direction.
    pub(crate) direction: Direction,
    /// What they were shown.
    pub(crate) header: Header,
    /// How many decisions there were before it: where its own stands, if it has one.
    pub(crate) place: usize,
}

/// What is noted on a packet's way.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) decisions: Vec<Decision>,
    /// What was asked; nobody notes it where nobody wants to know.
    questions: Option<Vec<Question>>,
    /// How many decisions were taken out before.
    taken: usize,
}

impl Record {
    /// Returns a record that notes questions too.
    pub(super) fn with_questions() -> Self {
        Self {
            questions: Some(Vec::new()),
            ..Self::default()
        }
    }

    /// Notes a question.
    pub(super) fn note(
        &mut self,
        endpoint: &Endpoint,
        name: String,
        chain: Chain,
        direction: Direction,
        header: &Header,
    ) {
        let place = self.taken + self.decisions.len();
        let Some(questions) = &mut self.questions else {
            return;
        };
        questions.push(Question {
            name,
            endpoint: endpoint.clone(),
            chain,
            direction,
            header: *header,
            place,
        });
    }

    /// Takes the decisions out.
    pub(super) fn take_decisions(&mut self) -> Vec<Decision> {
        std::mem::take(&mut self.decisions)
    }

    /// Returns the record of an answer, of which only who denies it counts: behind so many decisions.
    pub(super) fn for_answer(&self, decisions: usize) -> Self {
        Self {
            decisions: Vec::new(),
            questions: self.questions.as_ref().map(|_| Vec::new()),
            taken: decisions,
        }
    }

    /// Takes over what was asked about an answer that was denied: the last question is the one that counts.
    pub(super) fn adopt(&mut self, answered: Self) {
        let last = answered.questions.into_iter().flatten().last();
        let place = answered.taken;
        if let (Some(questions), Some(last)) = (&mut self.questions, last) {
            questions.push(Question { place, ..last });
        }
    }

    /// Returns the questions in packet order.
    pub(super) fn into_questions(self) -> Vec<Question> {
        self.questions.unwrap_or_default()
    }
}

impl Question {
    /// Returns whether a decision is the answer to it.
    pub(crate) fn is_answered_by(&self, place: usize, decision: &Decision) -> bool {
        self.place == place && self.point() == decision.point && self.name == decision.endpoint
    }

    /// Returns the point at which it was asked.
    pub(crate) fn point(&self) -> Point {
        match self.chain {
            Chain::Untracked => Point::Untracked,
            Chain::PreDnat => Point::PreDnat,
            Chain::Forward => Point::Forward,
            Chain::Normal => Point::from(self.direction),
        }
    }

    /// Returns whether the endpoint's profiles are asked behind its tiers.
    pub(crate) fn has_profiles(&self) -> bool {
        self.chain == Chain::Normal
    }
}

//! Whether an actor may approve at a gate, and why not. What a policy says is in `gate`.

use crate::{
    gate::{Authors, Excluded, GatePolicy, Identity, is_same_person, person, share},
    ids::{Actor, ActorKind, JobName},
    refusal::Refusal,
};

/// Why `asking`, who is the same person as `requester`, counts as who asked for the run. It names
/// the address that both have, because people do not know that theirs is shared.
fn why_requester(requester: (&Actor, &Identity), asking: (&Actor, &Identity)) -> String {
    let shared = requester.1.emails.iter().find(|email| asking.1.emails.contains(email));
    match shared.filter(|_| person(requester.0) != person(asking.0)) {
        Some(email) => {
            format!(
                "has the e-mail address {email} of `{}`, who requested the run or replaced its plan,",
                requester.0
            )
        }
        None => "requested the run or replaced its plan,".to_owned(),
    }
}

/// The approver, and what a policy compares with.
pub(crate) struct Asking<'a> {
    /// The job behind the gate.
    pub job: &'a JobName,
    /// Who wants to approve.
    pub by: (&'a Actor, &'a Identity),
    /// Who asked for the run, and who replaced its plan.
    pub requesters: &'a [(&'a Actor, &'a Identity)],
    /// Who wrote the file. `None`: unknown.
    pub authors: Option<&'a Authors>,
}

impl GatePolicy {
    /// Whether they may approve here; if not, why.
    pub(crate) fn admits(&self, asking: &Asking<'_>) -> Result<(), Refusal> {
        let (job, by) = (asking.job.clone(), asking.by.0.to_string());
        // A Cyrillic `а` makes a second `ana`. Without a policy people are not counted, so any name
        // is fine.
        if *self != Self::default() && !asking.by.0.name.is_ascii() {
            let why = "a name with non-ASCII letters can look like another name".to_owned();
            return Err(Refusal::ApproverNotAllowed { job, by, why });
        }
        if !self.approvers.is_empty() && !self.approvers.iter().any(|one| one.fits(asking.by)) {
            let why = format!("the gate accepts {}", self.whom());
            return Err(Refusal::ApproverNotAllowed { job, by, why });
        }
        if self.excludes(Excluded::Requester)
            && let Some(requester) =
                asking.requesters.iter().find(|requester| is_same_person(**requester, asking.by))
        {
            let why = why_requester(*requester, asking.by);
            return Err(Refusal::ApproverIsRequester { job, by, why });
        }
        if self.excludes(Excluded::Author) { asking.is_no_author() } else { Ok(()) }
    }
}

impl Asking<'_> {
    fn is_no_author(&self) -> Result<(), Refusal> {
        let (job, by) = (self.job.clone(), self.by.0.to_string());
        let Some(authors) = self.authors else { return Err(Refusal::AuthorsUnknown { job }) };
        // The last requester sent the newest version of the file.
        let sent_it = self.requesters.last().filter(|_| authors.uncommitted);
        if sent_it.is_some_and(|sender| is_same_person(*sender, self.by))
            || share(&authors.emails, &self.by.1.emails)
        {
            return Err(Refusal::ApproverIsAuthor { job, by });
        }
        // Whose address is unknown could be any of them.
        // After the comparison, so that a known author gets the more precise refusal.
        if self.by.1.emails.is_empty() {
            return Err(Refusal::ApproverEmailUnknown { job, by });
        }
        Ok(())
    }
}

/// Refuses an actor that is not a person: only people approve gates.
pub(crate) fn is_human(job: &JobName, by: &Actor) -> Result<(), Refusal> {
    match by.kind {
        ActorKind::Human => Ok(()),
        ActorKind::Agent | ActorKind::Service | ActorKind::Worker => {
            Err(Refusal::ApproverNotHuman { job: job.clone(), by: by.to_string() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approver_with_the_requesters_address_is_refused_with_the_address() {
        let identity = |email: &str| Identity { roles: vec![], emails: vec![email.to_owned()] };
        let (ana, bob, job) = (Actor::human("ana"), Actor::human("bob"), JobName::from("cutover"));
        let (of_ana, of_bob) = (identity("team@example.org"), identity("team@example.org"));
        let policy = GatePolicy { not: vec![Excluded::Requester], ..GatePolicy::default() };
        let said = |by, requester| {
            let requesters = [requester];
            let asking = Asking { job: &job, by, requesters: &requesters, authors: None };
            policy.admits(&asking).unwrap_err().to_string()
        };
        assert_eq!(
            said((&bob, &of_bob), (&ana, &of_ana)),
            "`human:bob` has the e-mail address team@example.org of `human:ana`, who requested the run or replaced its plan, and may not approve at `cutover`"
        );
        assert_eq!(
            said((&ana, &of_ana), (&ana, &of_ana)),
            "`human:ana` requested the run or replaced its plan, and may not approve at `cutover`"
        );
    }
}

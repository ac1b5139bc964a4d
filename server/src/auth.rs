//! Who asks, and whether they may. Identity is proven by a bearer token or by the certificate of a
//! worker, on ports only: a pipe and the store's own socket belong to the owner of the store.

mod atomic_file;
pub(crate) mod certificates;
pub(crate) mod guard;
pub mod oidc;
pub(crate) mod origin;
pub mod pki;
pub(crate) mod request_refused;
pub mod roles;
pub mod tokens;

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use tonic::{Extensions, Request};
use towpath_engine::{
    gate::{self, EMAILS_MAX, Identity},
    ids::Actor,
};
use towpath_proto::v1;

use self::{oidc::OidcIdentity, roles::Role, tokens::Token};
use crate::{command_error::CommandError, connections::Connection, wire};

/// An authenticated client.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) actor: Actor,
    pub(crate) roles: Vec<Role>,
    proof: Proof,
}

/// What proved an identity.
#[derive(Clone, Debug)]
enum Proof {
    Token(Token),
    Oidc(OidcIdentity),
    /// The certificate of a worker, and those between it and the authority.
    Certificate(Arc<Vec<CertificateDer<'static>>>),
}

impl Proof {
    /// The addresses that it vouches for.
    fn emails(&self) -> Vec<String> {
        match self {
            Self::Token(token) => token.emails.clone(),
            Self::Oidc(oidc_identity) => oidc_identity.email.iter().cloned().collect(),
            Self::Certificate(_) => Vec::new(),
        }
    }
}

impl Principal {
    /// The refusal of a request that needs one of the roles `needed`.
    fn lacks(&self, needed: &[Role], what: &str) -> CommandError {
        let needed = match needed {
            [] => "it is not part of the contract".to_owned(),
            [_] => format!("that needs the role {}", roles::listed(needed, "or")),
            [..] => format!("that needs one of the roles {}", roles::listed(needed, "or")),
        };
        let own = match &self.roles[..] {
            [] => "no role".to_owned(),
            [one] => format!("the role {one}"),
            many => format!("the roles {}", roles::listed(many, "and")),
        };
        let who = self.actor.to_string();
        let what = format!("{what}: {needed}, and `{who}` has {own}");
        CommandError::Forbidden { who, what }
    }

    fn of_token(token: Token) -> Self {
        Self { actor: token.actor(), roles: token.roles.clone(), proof: Proof::Token(token) }
    }

    fn of_vouched(oidc_identity: OidcIdentity) -> Self {
        let (actor, roles) = (oidc_identity.actor.clone(), oidc_identity.roles.clone());
        Self { actor, roles, proof: Proof::Oidc(oidc_identity) }
    }

    fn of_worker(name: &str, chain: Arc<Vec<CertificateDer<'static>>>) -> Self {
        let proof = Proof::Certificate(chain);
        Self { actor: Actor::worker(name), roles: vec![Role::Worker], proof }
    }
}

/// A request that says who makes it.
pub(crate) trait Claims {
    /// Who the sender says it is.
    fn claimed(&self) -> &str;
}

macro_rules! claims {
    ($($request:ident),*) => {
        $(impl Claims for v1::$request {
            fn claimed(&self) -> &str {
                &self.actor
            }
        })*
    };
}

claims!(
    StartRunRequest,
    ResumeRunRequest,
    RetryJobRequest,
    CancelRunRequest,
    ImportRunRequest,
    ApproveGateRequest,
    RejectGateRequest,
    DrainWorkerRequest
);

/// Who makes a request that changes something.
#[derive(Clone, Debug)]
pub(crate) struct Requester {
    /// The authenticated actor, else the one that the request names.
    pub(crate) actor: Actor,
    /// `None`: the client was not asked for proof.
    principal: Option<Principal>,
}

impl Requester {
    /// Who makes `request`.
    pub(crate) fn of<T: Claims>(request: &Request<T>) -> Result<Self, CommandError> {
        let claimed = request.get_ref().claimed();
        let Some(principal) = request.extensions().get::<Principal>() else {
            // A client with a token names no actor: its token does, at a server that reads tokens.
            if claimed.is_empty() && request.metadata().contains_key("authorization") {
                let why = "this server has no tokens, and the request names no actor";
                return Err(CommandError::Unauthenticated { why });
            }
            return Ok(Self { actor: wire::actor(claimed)?, principal: None });
        };
        let own = principal.actor.to_string();
        if claimed.is_empty() || claimed == own {
            let actor = principal.actor.clone();
            return Ok(Self { actor, principal: Some(principal.clone()) });
        }
        Err(CommandError::ActorMismatch { own, claimed: claimed.to_owned() })
    }

    /// What is known about them beside their name: what was proven, and only where no proof is asked
    /// for, the addresses that they claim.
    pub(crate) fn identity(&self, claimed: &[String]) -> Identity {
        match &self.principal {
            Some(principal) => Identity {
                roles: principal.roles.iter().map(|role| role.word().to_owned()).collect(),
                emails: principal.proof.emails(),
            },
            None => Identity {
                roles: vec![gate::OWNER.to_owned()],
                emails: claimed
                    .iter()
                    .take(EMAILS_MAX)
                    .filter_map(|text| gate::email(text))
                    .collect(),
            },
        }
    }

    /// Refuses them if they are authenticated and have none of `roles`; `what` is what needs one.
    pub(crate) fn needs(&self, roles: &[Role], what: &str) -> Result<(), CommandError> {
        needs(self.principal.as_ref(), roles, what)
    }

    /// The person `name`, who has proven to have `roles`.
    #[cfg(test)]
    pub(crate) fn with_roles(name: &str, roles: &[Role]) -> Self {
        let actor = Actor::human(name);
        let proof = Proof::Certificate(Arc::default());
        let principal = Principal { actor: actor.clone(), roles: roles.to_vec(), proof };
        Self { actor, principal: Some(principal) }
    }
}

fn needs(principal: Option<&Principal>, roles: &[Role], what: &str) -> Result<(), CommandError> {
    match principal {
        Some(principal) if !principal.roles.iter().any(|own| roles.contains(own)) => {
            Err(principal.lacks(roles, what))
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether the client of `request` may learn where the store is and with what it is reached: that is
/// for those who look after it. Every other client learns only its kind.
pub(crate) fn may_see_store<T>(request: &Request<T>) -> bool {
    let principal = request.extensions().get::<Principal>();
    needs(principal, &[Role::Auditor, Role::Admin], "the store").is_ok()
}

/// The workers of `tow run`, which work over a pipe of their own process, are `local/RUN`.
const LOCAL_WORKERS: &str = "local/";

/// Refuses a worker that goes by another name than the one it was proven to have.
pub(crate) fn is_worker(extensions: &Extensions, claimed: &str) -> Result<(), CommandError> {
    // A worker of another machine that took this name would be given the leases of a `tow run`,
    // and its jobs that are adopted.
    if claimed.starts_with(LOCAL_WORKERS) && Connection::of(extensions).is_some() {
        return Err(CommandError::WorkerNameReserved { name: claimed.to_owned() });
    }
    match extensions.get::<Principal>() {
        Some(principal) if principal.actor.name != claimed => {
            let (own, claimed) = (principal.actor.name.clone(), claimed.to_owned());
            Err(CommandError::WorkerIdentityMismatch { own, claimed })
        }
        Some(_) | None => Ok(()),
    }
}

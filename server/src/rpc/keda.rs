//! `externalscaler.ExternalScaler`: the demand for workers in the words of KEDA, so that
//! Kubernetes starts workers by itself. One worker is wanted for each job that waits for one or
//! has one; the metadata `tags` says what these workers offer.

use tonic::{Request, Response, Status};
use towpath_proto::{
    externalscaler::{
        GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
        MetricValue, ScaledObjectRef, external_scaler_server::ExternalScaler,
    },
    v1,
};

use super::{STREAM_QUEUE, Streamed, channel};
use crate::{
    Server,
    metric_values::{Demand, demand_of},
};

/// What the only metric is called.
const METRIC: &str = "towpath-jobs";
/// Jobs that one worker is for.
const JOBS_PER_WORKER: i64 = 1;

#[tonic::async_trait]
impl ExternalScaler for Server {
    type StreamIsActiveStream = Streamed<IsActiveResponse>;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let result = jobs(&self.demand(), &asked(request.into_inner())) > 0;
        Ok(Response::new(IsActiveResponse { result }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let (send, stream) = channel(STREAM_QUEUE);
        let (server, asked) = (self.clone(), asked(request.into_inner()));
        let is_active =
            move |demand: &Demand| IsActiveResponse { result: jobs(demand, &asked) > 0 };
        tokio::spawn(async move { server.tell(is_active, send).await });
        Ok(Response::new(stream))
    }

    async fn get_metric_spec(
        &self,
        _: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let spec = MetricSpec {
            metric_name: METRIC.to_owned(),
            target_size: JOBS_PER_WORKER,
            target_size_float: JOBS_PER_WORKER as f64,
        };
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let asked = asked(request.into_inner().scaled_object_ref.unwrap_or_default());
        let jobs = jobs(&self.demand(), &asked);
        let value = MetricValue {
            metric_name: METRIC.to_owned(),
            metric_value: i64::try_from(jobs).unwrap_or(i64::MAX),
            metric_value_float: jobs as f64,
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }
}

fn asked(object: ScaledObjectRef) -> v1::WatchDemandRequest {
    let tags = object.scaler_metadata.get("tags").map(String::as_str).unwrap_or_default();
    let tags = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty());
    v1::WatchDemandRequest { tags: tags.map(str::to_owned).collect(), all: false }
}

/// Jobs that a worker could begin, or that a worker holds.
fn jobs(demand: &Demand, asked: &v1::WatchDemandRequest) -> u64 {
    demand_of(demand, asked).sets.iter().map(|set| set.pending + set.leased).sum()
}

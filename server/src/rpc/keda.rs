//! `externalscaler.ExternalScaler`: the demand for workers in the words of KEDA, so that
//! Kubernetes starts workers by itself. One worker is wanted for each job that waits for one or
//! has one; the metadata `tags` says what these workers offer.

use tonic::{Request, Response, Status};
use towpath_proto::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef, external_scaler_server::ExternalScaler,
};

use super::{STREAM_QUEUE, Streamed, streamed};
use crate::demand::{Demand, DemandWatch, FittingDemand, LaunchOffer};

/// What the only metric is called.
const METRIC: &str = "towpath-jobs";
/// Jobs that one worker is for.
const JOBS_PER_WORKER: i64 = 1;

/// The handlers of the service.
#[derive(Clone, Debug)]
pub(crate) struct KedaApi {
    pub(crate) demand: DemandWatch,
}

#[tonic::async_trait]
impl ExternalScaler for KedaApi {
    type StreamIsActiveStream = Streamed<IsActiveResponse>;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let offer = offer(&request.into_inner());
        let result = is_wanted(&self.demand.now(), &offer);
        Ok(Response::new(IsActiveResponse { result }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let (send, stream) = streamed(STREAM_QUEUE, |result| IsActiveResponse { result });
        let (demand, offer) = (self.demand.clone(), offer(&request.into_inner()));
        tokio::spawn(async move {
            demand.follow(|demand| is_wanted(demand, &offer), send).await;
        });
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
        let offer = offer(&request.into_inner().scaled_object_ref.unwrap_or_default());
        let jobs = FittingDemand::of(&self.demand.now(), &offer).jobs();
        let value = MetricValue {
            metric_name: METRIC.to_owned(),
            metric_value: i64::try_from(jobs).unwrap_or(i64::MAX),
            metric_value_float: jobs as f64,
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }
}

/// What the workers of a scaled object offer. KEDA's metadata is text, so the tags are one.
fn offer(object: &ScaledObjectRef) -> LaunchOffer {
    let tags = object.scaler_metadata.get("tags").map(String::as_str).unwrap_or_default();
    let tags = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty());
    LaunchOffer { tags: tags.map(str::to_owned).collect(), all: false }
}

fn is_wanted(demand: &Demand, offer: &LaunchOffer) -> bool {
    FittingDemand::of(demand, offer).jobs() > 0
}

"""`/api/v1/hosts/`: what there is, draining, joining, forgetting."""

from __future__ import annotations

from fastapi import APIRouter, Response

from services.api.deps import Services
from services.api.hosts.schemas import DrainBody, HostPage, HostRead, JoinBody, JoinCode, JoinReply
from services.api.hosts.service import drain, forget, join, list_hosts, make_code, read_host

router = APIRouter(tags=["hosts"])
HOSTS = "/api/v1/hosts"


@router.get(f"{HOSTS}/", response_model=HostPage, summary="List hosts")
@router.get(HOSTS, response_model=HostPage, include_in_schema=False)
async def hosts(services: Services) -> HostPage:
    """Return every host with its inventory and what runs there."""
    return HostPage(items=await list_hosts(services))


@router.post(
    f"{HOSTS}/join-codes", status_code=201, response_model=JoinCode, summary="Make a joining code"
)
async def join_code(services: Services) -> JoinCode:
    """Return a one-time code for `trainyard agent join URL CODE`; it is shown this once."""
    code, expires = await make_code(services)
    url = services.settings.url or (
        f"http://{services.settings.api_host}:{services.settings.api_port}"
    )
    return JoinCode(code=code, expires_at=expires, command=f"trainyard agent join {url} {code}")


@router.post(f"{HOSTS}/join", status_code=201, response_model=JoinReply, summary="Join")
async def join_host(body: JoinBody, services: Services) -> JoinReply:
    """Exchange a one-time code and a public key for a host id and the broker's address; needs no token."""
    return await join(services, body)


@router.get(f"{HOSTS}/{{host}}", response_model=HostRead, summary="Read a host")
async def host(host: str, services: Services) -> HostRead:
    """Return one host by id or label."""
    return await read_host(services, host)


@router.post(
    f"{HOSTS}/{{host}}/drain", status_code=202, response_model=HostRead, summary="Drain a host"
)
async def drain_host(host: str, services: Services, body: DrainBody | None = None) -> HostRead:
    """Start nothing new there; with `stop_jobs` what runs there goes on elsewhere."""
    return await drain(services, host, drained=True, stop_jobs=bool(body and body.stop_jobs))


@router.post(
    f"{HOSTS}/{{host}}/undrain", status_code=202, response_model=HostRead, summary="Undrain a host"
)
async def undrain_host(host: str, services: Services) -> HostRead:
    """Let it take jobs again."""
    return await drain(services, host, drained=False, stop_jobs=False)


@router.delete(f"{HOSTS}/{{host}}", status_code=204, summary="Forget a host")
async def forget_host(host: str, services: Services) -> Response:
    """Remove an offline host and its key; its label becomes free."""
    await forget(services, host)
    return Response(status_code=204)

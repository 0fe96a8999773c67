"""A strict index of log lines: names and types of the Elastic Common Schema, and what the index refuses.

The facts are those of the field reference: https://www.elastic.co/docs/reference/ecs/ecs-field-reference
"""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

_NAMES = {
    "boolean": """
        file.code_signature.exists file.code_signature.trusted file.code_signature.valid
        process.code_signature.exists process.code_signature.trusted process.code_signature.valid
    """,
    "date": """
        @timestamp event.created event.end event.ingested event.start file.accessed
        file.code_signature.timestamp file.created file.ctime file.elf.creation_date file.mtime
        file.x509.not_after file.x509.not_before process.code_signature.timestamp
        process.elf.creation_date process.end process.start
    """,
    "float": """
        event.risk_score event.risk_score_norm
    """,
    "ip": """
        client.ip client.nat.ip destination.ip destination.nat.ip host.ip network.forwarded_ip
        server.ip server.nat.ip source.ip source.nat.ip
    """,
    "keyword": """
        agent.build.original agent.ephemeral_id agent.id agent.name agent.type agent.version
        client.address client.domain client.geo.city_name client.geo.continent_code
        client.geo.continent_name client.geo.country_iso_code client.geo.country_name
        client.geo.name client.geo.postal_code client.geo.region_iso_code client.geo.region_name
        client.geo.timezone client.mac client.registered_domain client.subdomain
        client.top_level_domain client.user.domain client.user.email client.user.full_name
        client.user.hash client.user.id client.user.name client.user.roles cloud.account.id
        cloud.account.name cloud.availability_zone cloud.instance.id cloud.instance.name
        cloud.machine.type cloud.project.id cloud.project.name cloud.provider cloud.region
        cloud.service.name container.id container.image.name container.image.tag container.name
        container.runtime destination.address destination.domain destination.geo.city_name
        destination.geo.continent_code destination.geo.continent_name
        destination.geo.country_iso_code destination.geo.country_name destination.geo.name
        destination.geo.postal_code destination.geo.region_iso_code destination.geo.region_name
        destination.geo.timezone destination.mac destination.registered_domain destination.subdomain
        destination.top_level_domain destination.user.domain destination.user.email
        destination.user.full_name destination.user.hash destination.user.id destination.user.name
        destination.user.roles ecs.version error.code error.id error.type event.action
        event.agent_id_status event.category event.code event.dataset event.hash event.id event.kind
        event.module event.original event.outcome event.provider event.reason event.reference
        event.timezone event.type event.url file.attributes file.code_signature.digest_algorithm
        file.code_signature.signing_id file.code_signature.status file.code_signature.subject_name
        file.code_signature.team_id file.device file.directory file.drive_letter
        file.elf.architecture file.elf.byte_order file.elf.cpu_type file.elf.shared_libraries
        file.elf.telfhash file.extension file.fork_name file.gid file.group file.hash.md5
        file.hash.sha1 file.hash.sha256 file.hash.sha512 file.hash.ssdeep file.inode file.mime_type
        file.mode file.name file.owner file.path file.pe.architecture file.pe.company
        file.pe.description file.pe.file_version file.pe.imphash file.pe.original_file_name
        file.pe.product file.target_path file.type file.uid file.x509.alternative_names
        file.x509.public_key_algorithm file.x509.public_key_curve file.x509.serial_number
        file.x509.signature_algorithm file.x509.version_number host.architecture host.domain
        host.geo.city_name host.geo.continent_code host.geo.continent_name host.geo.country_iso_code
        host.geo.country_name host.geo.name host.geo.postal_code host.geo.region_iso_code
        host.geo.region_name host.geo.timezone host.hostname host.id host.mac host.name
        host.os.family host.os.full host.os.kernel host.os.name host.os.platform host.os.type
        host.os.version host.type host.user.domain host.user.email host.user.full_name
        host.user.group.domain host.user.group.id host.user.group.name host.user.hash host.user.id
        host.user.name host.user.roles http.request.id http.request.method http.request.mime_type
        http.request.referrer http.response.mime_type http.version log.file.path log.level
        log.logger log.origin.file.name log.origin.function log.original log.syslog.facility.name
        log.syslog.severity.name network.application network.community_id network.direction
        network.iana_number network.inner.vlan.id network.inner.vlan.name network.name
        network.protocol network.transport network.type network.vlan.id network.vlan.name
        orchestrator.api_version orchestrator.cluster.name orchestrator.cluster.url
        orchestrator.cluster.version orchestrator.namespace orchestrator.organization
        orchestrator.resource.name orchestrator.resource.type orchestrator.type process.args
        process.code_signature.digest_algorithm process.code_signature.signing_id
        process.code_signature.status process.code_signature.subject_name
        process.code_signature.team_id process.elf.architecture process.elf.byte_order
        process.elf.cpu_type process.elf.shared_libraries process.elf.telfhash process.entity_id
        process.executable process.hash.md5 process.hash.sha1 process.hash.sha256
        process.hash.sha512 process.hash.ssdeep process.name process.pe.architecture
        process.pe.company process.pe.description process.pe.file_version process.pe.imphash
        process.pe.original_file_name process.pe.product process.thread.name process.title
        process.working_directory server.address server.domain server.geo.city_name
        server.geo.continent_code server.geo.continent_name server.geo.country_iso_code
        server.geo.country_name server.geo.name server.geo.postal_code server.geo.region_iso_code
        server.geo.region_name server.geo.timezone server.mac server.registered_domain
        server.subdomain server.top_level_domain server.user.domain server.user.email
        server.user.full_name server.user.hash server.user.id server.user.name server.user.roles
        service.address service.environment service.ephemeral_id service.id service.name
        service.node.name service.state service.type service.version source.address source.domain
        source.geo.city_name source.geo.continent_code source.geo.continent_name
        source.geo.country_iso_code source.geo.country_name source.geo.name source.geo.postal_code
        source.geo.region_iso_code source.geo.region_name source.geo.timezone source.mac
        source.registered_domain source.subdomain source.top_level_domain source.user.domain
        source.user.email source.user.full_name source.user.hash source.user.id source.user.name
        source.user.roles span.id tags trace.id transaction.id url.domain url.extension url.fragment
        url.password url.query url.registered_domain url.scheme url.subdomain url.top_level_domain
        url.username user.changes.domain user.changes.email user.changes.full_name user.changes.hash
        user.changes.id user.changes.name user.changes.roles user.domain user.effective.domain
        user.effective.email user.effective.full_name user.effective.hash user.effective.id
        user.effective.name user.effective.roles user.email user.full_name user.group.domain
        user.group.id user.group.name user.hash user.id user.name user.roles user.target.domain
        user.target.email user.target.full_name user.target.hash user.target.id user.target.name
        user.target.roles user_agent.device.name user_agent.name user_agent.original
        user_agent.os.family user_agent.os.full user_agent.os.kernel user_agent.os.name
        user_agent.os.platform user_agent.os.type user_agent.os.version user_agent.version
    """,
    "long": """
        client.as.number client.bytes client.nat.port client.packets client.port
        destination.as.number destination.bytes destination.nat.port destination.packets
        destination.port event.duration event.sequence event.severity file.size
        file.x509.public_key_exponent file.x509.public_key_size host.disk.read.bytes
        host.disk.write.bytes host.network.egress.bytes host.network.egress.packets
        host.network.ingress.bytes host.network.ingress.packets host.uptime http.request.body.bytes
        http.request.bytes http.response.body.bytes http.response.bytes http.response.status_code
        log.origin.file.line log.syslog.facility.code log.syslog.priority log.syslog.severity.code
        network.bytes network.packets process.args_count process.exit_code process.parent.pid
        process.pgid process.pid process.ppid process.thread.id process.uptime server.as.number
        server.bytes server.nat.port server.packets server.port source.as.number source.bytes
        source.nat.port source.packets source.port url.port
    """,
    "match_only_text": """
        error.message message
    """,
    "object": """
        labels
    """,
    "wildcard": """
        error.stack_trace http.request.body.content http.response.body.content process.command_line
        url.full url.original url.path
    """,
}

TYPES = {name: type_ for type_, names in _NAMES.items() for name in names.split()}


def index() -> dict[str, Any]:
    """Return the settings of an index that refuses every other field; labels are keywords, as the schema says."""
    properties: dict[str, Any] = {}
    for name, type_ in TYPES.items():
        *objects, last = name.split(".")
        inner = properties
        for each in objects:
            inner = inner.setdefault(each, {"properties": {}})["properties"]
        if type_ != "object":
            # As the schema's template has it: longer texts are kept, and not searched.
            inner[last] = {"type": type_, "ignore_above": 1024} if type_ == "keyword" else {"type": type_}
    properties["labels"] = {"type": "object", "dynamic": "true"}
    labels = {"path_match": "labels.*", "mapping": {"type": "keyword", "ignore_above": 1024}}
    return {
        "settings": {"number_of_shards": 1, "number_of_replicas": 0, "mapping.total_fields.limit": 2000},
        "mappings": {
            "dynamic": "strict",
            "dynamic_templates": [{"labels": labels}],
            "properties": properties,
        },
    }


def lines_of(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log file; each must be a JSON object."""
    for text in log.read_text().splitlines():
        line = json.loads(text)
        assert isinstance(line, dict), text
        yield cast("dict[str, Any]", line)


def refusals(line: Mapping[str, object]) -> list[str]:
    """Return why the index would refuse a line."""
    found = [
        f"{name} is missing"
        for name in ("@timestamp", "log.level", "message", "ecs.version")
        if name not in line
    ]
    for name, value in line.items():
        if name == "labels":
            labels = cast("Mapping[str, object]", value)
            found += [
                f"labels.{key}: {inner!r}"
                for key, inner in labels.items()
                if "." in key or not key.strip() or not _is_label(inner)
            ]
        elif not _fits(TYPES.get(name), value):
            found.append(f"{name}: {value!r} for {TYPES.get(name)}")
    return found


def _is_label(value: object) -> bool:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return all(each is None or isinstance(each, str | int | float) for each in values)


def _fits(type_: str | None, value: object) -> bool:
    match type_:
        case "keyword":
            values = cast("list[object]", value) if isinstance(value, list) else [value]
            return all(isinstance(each, str) for each in values)
        case "match_only_text" | "wildcard":
            return isinstance(value, str)
        case "long":
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "date":
            return isinstance(value, str) and bool(datetime.fromisoformat(value))
        case "ip":
            return isinstance(value, str) and bool(ip_address(value))
        case _:
            return False

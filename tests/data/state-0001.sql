BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE dataset (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE dataset_version (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	dataset VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE deployment (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "deployment" VALUES('chat','2026-11-25T02:34:32.026022+00:00','{"name":"chat","created_at":"2026-11-25T02:34:32.026022Z","spec":{"kind":"deployment","name":"chat","model":"m","version":1,"engine":{"type":"command","command":["/opt/stoker/bin/python","/opt/stoker/tests/system/model_server.py","{socket}","{model}","{name}"],"env":{},"ready_path":"/v1/completions"},"replicas":1,"devices":0,"start_timeout":600.0,"drain_timeout":5.0,"max_restarts":3},"version":1,"previous_version":null,"deleting":false,"phase":"ready","message":"","rollout":null}');
CREATE TABLE event (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	time VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	reason VARCHAR NOT NULL, 
	message VARCHAR NOT NULL, 
	data JSON NOT NULL
);
INSERT INTO "event" VALUES(1,'2026-11-25T02:34:31.965379+00:00','model','m','ModelCreated','model m was created.','{}');
INSERT INTO "event" VALUES(2,'2026-11-25T02:34:31.997105+00:00','version','m@1','VersionRegistered','m@1, from /srv/stoker/weights-one.','{"digest": "388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07"}');
INSERT INTO "event" VALUES(3,'2026-11-25T02:34:31.998016+00:00','model','m','AliasMoved','m@one is version 1 now.','{"before": null, "after": 1}');
INSERT INTO "event" VALUES(4,'2026-11-25T02:34:32.017694+00:00','version','m@2','VersionRegistered','m@2, from /srv/stoker/weights-two.','{"digest": "ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6"}');
INSERT INTO "event" VALUES(5,'2026-11-25T02:34:32.018443+00:00','model','m','AliasMoved','m@two is version 2 now.','{"before": null, "after": 2}');
INSERT INTO "event" VALUES(6,'2026-11-25T02:34:32.029745+00:00','deployment','chat','DeploymentCreated','deployment chat of m@1 was created.','{"phase": "starting"}');
INSERT INTO "event" VALUES(7,'2026-11-25T02:34:32.062510+00:00','replica','chat-v1-0','ReplicaCreated','chat-v1-0 is to serve version 1.','{"phase": "pending"}');
INSERT INTO "event" VALUES(8,'2026-11-25T02:34:32.068669+00:00','replica','chat-v1-0','ReplicaStarting','chat-v1-0 starts (start number 1).','{"phase": "starting"}');
INSERT INTO "event" VALUES(9,'2026-11-25T02:34:32.081582+00:00','gateway','gateway','GatewayReady','the gateway serves http://127.0.0.1:39097/v1.','{"phase": "ready"}');
INSERT INTO "event" VALUES(10,'2026-11-25T02:34:32.652810+00:00','replica','chat-v1-0','ReplicaReady','chat-v1-0 answered after 0.6 s.','{"phase": "ready"}');
INSERT INTO "event" VALUES(11,'2026-11-25T02:34:32.664232+00:00','deployment','chat','DeploymentReady','deployment chat is ready.','{"phase": "ready"}');
INSERT INTO "event" VALUES(12,'2026-11-25T02:34:32.703524+00:00','deployment','chat','DeploymentChanged','deployment chat was changed.','{"phase": "ready"}');
INSERT INTO "event" VALUES(13,'2026-11-25T02:34:32.712022+00:00','job','tune','JobCreated','job tune was created.','{}');
INSERT INTO "event" VALUES(14,'2026-11-25T02:34:32.716379+00:00','schedule','nightly','ScheduleCreated','schedule nightly was created.','{}');
INSERT INTO "event" VALUES(15,'2026-11-25T02:34:32.732495+00:00','schedule','nightly','ScheduleSet','nightly fires next at 2026-11-25 03:00:00+00:00.','{}');
INSERT INTO "event" VALUES(16,'2026-11-25T02:34:32.869127+00:00','run','tune-1','RunQueued','tune-1 waits for its turn (manual).','{"phase": "queued"}');
INSERT INTO "event" VALUES(17,'2026-11-25T02:34:32.884698+00:00','run','tune-1','RunStarted','tune-1 started (attempt 1).','{"attempt": 1, "phase": "running"}');
INSERT INTO "event" VALUES(18,'2026-11-25T02:34:32.981079+00:00','run','tune-1','RunSucceeded','tune-1 succeeded.','{"phase": "succeeded"}');
CREATE TABLE job (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "job" VALUES('tune','2026-11-25T02:34:32.710947+00:00','{"name":"tune","created_at":"2026-11-25T02:34:32.710947Z","spec":{"kind":"job","name":"tune","command":["{python}","train.py"],"code":"/srv/stoker/code","python":null,"dataset":null,"base":null,"params":{},"env":{},"timeout":null,"retries":2,"backoff":10.0,"devices":0,"registers":null},"runs":1}');
CREATE TABLE model (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "model" VALUES('m','2026-11-25T02:34:31.964180+00:00','{"name":"m","created_at":"2026-11-25T02:34:31.964180Z","spec":{"kind":"model","name":"m","description":"","tags":{}},"latest":2,"aliases":{"one":1,"two":2}}');
CREATE TABLE replica (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	deployment VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	phase VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "replica" VALUES('chat-v1-0','2026-11-25T02:34:32.060532+00:00','{"name":"chat-v1-0","created_at":"2026-11-25T02:34:32.060532Z","deployment":"chat","version":1,"index":0,"wanted":true,"failures":0,"starts":1,"address":"unix:/srv/stoker/s/e2e9a02ca722.sock","devices":[],"launch_digest":"686746133a1e","state":{"phase":"ready","process":"replica-chat-v1-0-1","since":"2026-11-25T02:34:32.651271Z"}}','chat',1,'ready');
CREATE TABLE rollout (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	deployment VARCHAR NOT NULL, 
	phase VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE run (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	job VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	phase VARCHAR NOT NULL, 
	"trigger" VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "run" VALUES('tune-1','2026-11-25T02:34:32.865931+00:00','{"name":"tune-1","created_at":"2026-11-25T02:34:32.865931Z","job":"tune","number":1,"spec":{"kind":"job","name":"tune","command":["{python}","train.py"],"code":"/srv/stoker/code","python":null,"dataset":null,"base":null,"params":{},"env":{},"timeout":null,"retries":2,"backoff":10.0,"devices":0,"registers":null},"params":{},"trigger":"manual","attempt":1,"code_digest":"5a1a1f8501af6fddac64c42efe526370d64aea083a13212148d85fcad37df64e","code_commit":null,"dataset_version":null,"dataset_digest":null,"base_version":null,"environment":{"python":"3.11.7","platform":"Linux-6.1.0-x86_64-with-glibc2.36","packages":["alembic==1.20.1","annotated-doc==0.0.7","annotated-types==0.8.0","anyio==4.16.0","APScheduler==3.11.3","ast_serialize==0.13.1","build==1.6.1","certifi==2026.10.18","click==8.5.1","execnet==2.1.2","fastapi==0.165.0","grimp==3.19","h11==0.16.0","httpcore2==2.16.2","httpcore==1.0.9","httptools==0.9.0","httpx-sse==0.4.3","httpx2==2.16.2","httpx==0.28.1","hypothesis==6.170.15","idna==3.20","import-linter==2.16","iniconfig==2.3.1","Jinja2==3.1.6","jiter==0.19.0","librt==0.16.0","linkify-it-py==2.2.0","Mako==1.4.3","markdown-it-py==4.3.0","MarkupSafe==3.0.4","mdit-py-plugins==0.7.0","mdurl==0.1.2","msgspec==0.22.0","mypy==2.4.1","mypy_extensions==1.2.0","nvidia-ml-py==13.615.71","openai==3.54.0","opentelemetry-api==1.45.2","packaging==26.3","pathspec==1.1.1","pip==23.2.1","platformdirs==4.14.7","pluggy==1.7.0","psutil==7.2.2","pydantic==2.14.3","pydantic_core==2.50.4","Pygments==2.21.0","pyproject_hooks==1.3.3","pytest-textual-snapshot==1.1.0","pytest-timeout==2.4.0","pytest-xdist==3.8.0","pytest==8.4.2","rich==15.0.0","ruamel.yaml==0.19.1","ruff==0.17.6","setuptools==84.2.1","shellingham==1.5.4","sniffio==1.3.1","sortedcontainers==2.4.0","SQLAlchemy==2.1.9","sqlmodel==0.0.50","starlette==1.10.0","stoker==0.1.0","syrupy==4.8.0","textual==8.2.8","truststore==0.10.5","typer==0.29.2","types-psutil==7.2.2.20261111","typing-inspection==0.4.5","typing_extensions==4.16.0","tzlocal==5.4.5","uvicorn==0.54.0","uvloop==0.23.0","watchdog==7.1.0"],"packages_digest":"899b8add55dd423bffd5d6a7c32cb6cf4e07082db09c5569eddb43e38f34455e","executable":"/opt/stoker/bin/python"},"devices":[],"state":{"phase":"succeeded","started_at":"2026-11-25T02:34:32.883612Z","finished_at":"2026-11-25T02:34:32.979776Z","registered":null},"folder":"/srv/stoker/runs/tune-1"}','tune',1,'succeeded','manual');
CREATE TABLE schedule (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "schedule" VALUES('nightly','2026-11-25T02:34:32.714087+00:00','{"name":"nightly","created_at":"2026-11-25T02:34:32.714087Z","spec":{"kind":"schedule","name":"nightly","job":"tune","cron":"0 3 * * *","interval":null,"date":null,"timezone":"UTC","misfire":"once","params":{},"paused":false},"spec_set_at":"2026-11-25T02:34:32.714095Z","last_fired_at":null,"next_fire_at":"2026-11-25T03:00:00Z"}');
CREATE TABLE version (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	model VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "version" VALUES('m@1','2026-11-25T02:34:31.994647+00:00','{"name":"m@1","created_at":"2026-11-25T02:34:31.994647Z","model":"m","number":1,"digest":"388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07","files":1,"bytes":20,"folder":"/srv/stoker/content/trees/388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07","lineage":{"source":"/srv/stoker/weights-one","run":null,"code_commit":null,"code_digest":null,"dataset_version":null,"dataset_digest":null,"base_version":null,"params":{},"metrics":{},"environment":{}}}','m',1,'388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07');
INSERT INTO "version" VALUES('m@2','2026-11-25T02:34:32.016402+00:00','{"name":"m@2","created_at":"2026-11-25T02:34:32.016402Z","model":"m","number":2,"digest":"ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6","files":1,"bytes":20,"folder":"/srv/stoker/content/trees/ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6","lineage":{"source":"/srv/stoker/weights-two","run":null,"code_commit":null,"code_digest":null,"dataset_version":null,"dataset_digest":null,"base_version":null,"params":{},"metrics":{},"environment":{}}}','m',2,'ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6');
CREATE INDEX ix_event_kind ON event (kind);
CREATE INDEX ix_event_name ON event (name);
CREATE INDEX ix_dataset_version_dataset ON dataset_version (dataset);
CREATE INDEX ix_dataset_version_digest ON dataset_version (digest);
CREATE INDEX ix_run_job ON run (job);
CREATE INDEX ix_run_phase ON run (phase);
CREATE INDEX ix_version_model ON version (model);
CREATE INDEX ix_version_digest ON version (digest);
CREATE INDEX ix_replica_deployment ON replica (deployment);
CREATE INDEX ix_rollout_deployment ON rollout (deployment);
CREATE INDEX ix_rollout_phase ON rollout (phase);
CREATE TRIGGER dataset_version_is_immutable BEFORE UPDATE ON dataset_version BEGIN SELECT RAISE(ABORT, 'a dataset_version can not be changed'); END;
CREATE TRIGGER version_is_immutable BEFORE UPDATE ON version BEGIN SELECT RAISE(ABORT, 'a version can not be changed'); END;
CREATE TRIGGER event_is_immutable BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'a event can not be changed'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('event',18);
COMMIT;

BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE api_key (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	PRIMARY KEY (name), 
	UNIQUE (digest)
);
INSERT INTO "api_key" VALUES('alice','2026-11-28T18:37:52.018736+00:00','{"name":"alice","created_at":"2026-11-28T18:37:52.018736Z","digest":"49381e2f7f6bbba2584c90a307a3125b258579af8a48992196db51a93be7a715","models":["chat"],"requests_per_minute":0,"tokens_per_minute":0,"in_flight":0}','49381e2f7f6bbba2584c90a307a3125b258579af8a48992196db51a93be7a715');
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
INSERT INTO "deployment" VALUES('chat','2026-11-28T18:37:50.799868+00:00','{"name":"chat","created_at":"2026-11-28T18:37:50.799868Z","spec":{"kind":"deployment","name":"chat","model":"m","version":1,"engine":{"type":"command","command":["/opt/stoker/bin/python","/opt/stoker/tests/system/model_server.py","{socket}","{model}","{name}"],"env":{},"ready_path":"/v1/completions","health_path":"/health"},"replicas":1,"devices":0,"device_memory":null,"start_timeout":600.0,"drain_timeout":90.0,"stall_timeout":60.0,"restart":{"policy":"on-failure","backoff":1.0,"backoff_cap":60.0,"limit":3,"healthy_after":60.0},"limits":{"memory":null,"processes":null,"cpu_weight":null},"aliases":["gpt"],"hold_timeout":5.0,"max_in_flight":1024,"max_queue":1024},"version":2,"previous_version":1,"deleting":false,"phase":"ready","message":"","rollout":"to-one"}');
CREATE TABLE event (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	time VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	reason VARCHAR NOT NULL, 
	message VARCHAR NOT NULL, 
	data JSON NOT NULL
);
INSERT INTO "event" VALUES(1,'2026-11-28T18:37:50.483622+00:00','model','m','ModelCreated','model m was created.','{}');
INSERT INTO "event" VALUES(2,'2026-11-28T18:37:50.644542+00:00','version','m@1','VersionRegistered','m@1, from /srv/stoker/weights-one.','{"digest": "388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07"}');
INSERT INTO "event" VALUES(3,'2026-11-28T18:37:50.658008+00:00','model','m','AliasMoved','m@one is version 1 now.','{"before": null, "after": 1}');
INSERT INTO "event" VALUES(4,'2026-11-28T18:37:50.764720+00:00','version','m@2','VersionRegistered','m@2, from /srv/stoker/weights-two.','{"digest": "ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6"}');
INSERT INTO "event" VALUES(5,'2026-11-28T18:37:50.782358+00:00','model','m','AliasMoved','m@two is version 2 now.','{"before": null, "after": 2}');
INSERT INTO "event" VALUES(6,'2026-11-28T18:37:50.801428+00:00','deployment','chat','DeploymentCreated','deployment chat of m@1 was created.','{"phase": "starting"}');
INSERT INTO "event" VALUES(7,'2026-11-28T18:37:50.866510+00:00','replica','chat-v1-0','ReplicaCreated','chat-v1-0 is to serve version 1.','{"phase": "pending"}');
INSERT INTO "event" VALUES(8,'2026-11-28T18:37:50.888285+00:00','replica','chat-v1-0','ReplicaStarting','chat-v1-0 starts (start number 1).','{"phase": "starting"}');
INSERT INTO "event" VALUES(9,'2026-11-28T18:37:51.497513+00:00','gateway','gateway','GatewayReady','the gateway serves http://127.0.0.1:32985/v1.','{"phase": "ready", "worker": 0}');
INSERT INTO "event" VALUES(10,'2026-11-28T18:37:51.939813+00:00','replica','chat-v1-0','ReplicaReady','chat-v1-0 answered after 1.1 s.','{"phase": "ready"}');
INSERT INTO "event" VALUES(11,'2026-11-28T18:37:51.969539+00:00','deployment','chat','DeploymentReady','deployment chat is ready.','{"phase": "ready"}');
INSERT INTO "event" VALUES(12,'2026-11-28T18:37:52.020347+00:00','key','alice','KeyCreated','API key alice was made, by uid:0.','{"by": "uid:0"}');
INSERT INTO "event" VALUES(13,'2026-11-28T18:37:52.164634+00:00','job','tune','JobCreated','job tune was created.','{}');
INSERT INTO "event" VALUES(14,'2026-11-28T18:37:52.198352+00:00','schedule','nightly','ScheduleCreated','schedule nightly was created.','{}');
INSERT INTO "event" VALUES(15,'2026-11-28T18:37:52.215661+00:00','schedule','nightly','ScheduleSet','nightly fires next at 2026-11-29 03:00:00+01:00.','{}');
INSERT INTO "event" VALUES(16,'2026-11-28T18:37:52.834779+00:00','run','tune-1','RunQueued','tune-1 waits for its turn (manual).','{"phase": "queued"}');
INSERT INTO "event" VALUES(17,'2026-11-28T18:37:52.867777+00:00','run','tune-1','RunStarted','tune-1 started (attempt 1).','{"attempt": 1, "phase": "running"}');
INSERT INTO "event" VALUES(18,'2026-11-28T18:37:53.031431+00:00','run','tune-1','RunSucceeded','tune-1 succeeded.','{"phase": "succeeded"}');
INSERT INTO "event" VALUES(19,'2026-11-28T18:37:53.143913+00:00','rollout','to-two','RolloutStarted','to-two: chat moves from version 1 to 2.','{"phase": "preparing"}');
INSERT INTO "event" VALUES(20,'2026-11-28T18:37:53.208873+00:00','replica','chat-v2-0','ReplicaCreated','chat-v2-0 is to serve version 2.','{"phase": "pending"}');
INSERT INTO "event" VALUES(21,'2026-11-28T18:37:53.238681+00:00','replica','chat-v2-0','ReplicaStarting','chat-v2-0 starts (start number 1).','{"phase": "starting"}');
INSERT INTO "event" VALUES(22,'2026-11-28T18:37:54.420973+00:00','replica','chat-v2-0','ReplicaReady','chat-v2-0 answered after 1.2 s.','{"phase": "ready"}');
INSERT INTO "event" VALUES(23,'2026-11-28T18:37:54.505092+00:00','rollout','to-two','RolloutStepped','to-two: step 1 of 2: shadow 50 % to version 2.','{"verdict": null, "evidence": [], "phase": "stepping"}');
INSERT INTO "event" VALUES(24,'2026-11-28T18:37:54.722010+00:00','rollout','to-two','GuardsRead','to-two: error_rate starved, ttft starved.','{"verdicts": ["starved", "starved"], "reasons": ["too few requests to judge the error rate: 1 of v2 and 12 of v1; needed are 8 of either", "too few requests to judge the TTFT: 1 of v2 and 12 of v1; needed are 8 of either"], "phase": "stepping"}');
INSERT INTO "event" VALUES(25,'2026-11-28T18:37:54.927544+00:00','rollout','to-two','RolloutStepped','to-two: step 2 of 2: canary 50 % to version 2.','{"verdict": "pass", "evidence": ["error_rate: pass: error rate of v2 is 0.0 %, v1''s 0.0 %: +0.0 points (-18.8 to +43.3); limit +5; 11 and 30 requests", "ttft: pass: TTFT p90 of v2 is 0.91 times v1''s (8 ms and 8.78 ms); limit 100.00; 11 and 30 requests"], "phase": "stepping"}');
INSERT INTO "event" VALUES(26,'2026-11-28T18:37:55.014947+00:00','rollout','to-two','GuardsRead','to-two: error_rate starved, ttft starved.','{"verdicts": ["starved", "starved"], "reasons": ["no request of this step was answered by the candidate: no error rate to judge", "no request of this step was answered by the candidate: no TTFT to judge"], "phase": "stepping"}');
INSERT INTO "event" VALUES(27,'2026-11-28T18:37:55.362023+00:00','rollout','to-two','RolloutPromoting','to-two: every guard held in every step; all traffic goes to version 2.','{"verdict": "pass", "evidence": ["error_rate: pass: error rate of v2 is 0.0 %, v1''s 0.0 %: +0.0 points (-19.9 to +46.3); limit +5; 10 and 28 requests", "ttft: pass: TTFT p90 of v2 is 0.59 times v1''s (8.82 ms and 14.9 ms); limit 100.00; 10 and 28 requests"], "phase": "promoting"}');
INSERT INTO "event" VALUES(28,'2026-11-28T18:37:55.457670+00:00','deployment','chat','DeploymentServes','chat serves version 2.','{"phase": "ready"}');
INSERT INTO "event" VALUES(29,'2026-11-28T18:37:55.458813+00:00','rollout','to-two','RolloutPromoted','to-two: version 2 is promoted.','{"verdict": null, "evidence": ["error_rate: pass: error rate of v2 is 0.0 %, v1''s 0.0 %: +0.0 points (-19.9 to +46.3); limit +5; 10 and 28 requests", "ttft: pass: TTFT p90 of v2 is 0.59 times v1''s (8.82 ms and 14.9 ms); limit 100.00; 10 and 28 requests"], "phase": "promoted"}');
INSERT INTO "event" VALUES(30,'2026-11-28T18:37:55.494643+00:00','replica','chat-v1-0','ReplicaRetired','chat-v1-0 is no longer wanted.','{"phase": "ready"}');
INSERT INTO "event" VALUES(31,'2026-11-28T18:37:55.512736+00:00','replica','chat-v1-0','ReplicaDraining','chat-v1-0 drains.','{"phase": "draining"}');
INSERT INTO "event" VALUES(32,'2026-11-28T18:37:55.775313+00:00','replica','chat-v1-0','ReplicaStopping','chat-v1-0 stops; 0 in flight.','{"phase": "stopping"}');
INSERT INTO "event" VALUES(33,'2026-11-28T18:37:55.908102+00:00','replica','chat-v1-0','ReplicaStopped','chat-v1-0 is gone.','{}');
INSERT INTO "event" VALUES(34,'2026-11-28T18:37:55.963979+00:00','rollout','to-one','RolloutStarted','to-one: chat moves from version 2 to 1.','{"phase": "preparing"}');
INSERT INTO "event" VALUES(35,'2026-11-28T18:37:55.987673+00:00','replica','chat-v1-0','ReplicaCreated','chat-v1-0 is to serve version 1.','{"phase": "pending"}');
INSERT INTO "event" VALUES(36,'2026-11-28T18:37:56.034844+00:00','replica','chat-v1-0','ReplicaStarting','chat-v1-0 starts (start number 1).','{"phase": "starting"}');
INSERT INTO "event" VALUES(37,'2026-11-28T18:37:57.060556+00:00','replica','chat-v1-0','ReplicaReady','chat-v1-0 answered after 1.0 s.','{"phase": "ready"}');
INSERT INTO "event" VALUES(38,'2026-11-28T18:37:57.138059+00:00','rollout','to-one','RolloutStepped','to-one: step 1 of 1: canary 50 % to version 1.','{"verdict": null, "evidence": [], "phase": "stepping"}');
INSERT INTO "event" VALUES(39,'2026-11-28T18:37:57.208551+00:00','rollout','to-one','GuardsRead','to-one: error_rate starved.','{"verdicts": ["starved"], "reasons": ["no request of this step was answered by the candidate: no error rate to judge"], "phase": "stepping"}');
INSERT INTO "event" VALUES(40,'2026-11-28T18:37:57.392514+00:00','rollout','to-one','GuardsRead','to-one: error_rate pass.','{"verdicts": ["pass"], "reasons": ["error rate of v1 is 0.0 %, v2''s 0.0 %: +0.0 points (-20.2 to +40.9); limit +5; 9 and 21 requests"], "phase": "stepping"}');
CREATE TABLE job (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "job" VALUES('tune','2026-11-28T18:37:52.163322+00:00','{"name":"tune","created_at":"2026-11-28T18:37:52.163322Z","spec":{"kind":"job","name":"tune","command":["/opt/stoker/bin/python","-c","print(1)"],"code":null,"python":null,"dataset":null,"base":null,"params":{},"env":{},"timeout":null,"retries":0,"backoff":10.0,"checkpoint":null,"devices":0,"device_memory":null,"limits":{"memory":null,"processes":null,"cpu_weight":null},"registers":null},"runs":1}');
CREATE TABLE model (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "model" VALUES('m','2026-11-28T18:37:50.481891+00:00','{"name":"m","created_at":"2026-11-28T18:37:50.481891Z","spec":{"kind":"model","name":"m","description":"","tags":{}},"latest":2,"aliases":{"one":1,"two":2}}');
CREATE TABLE replica (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	deployment VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	phase VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "replica" VALUES('chat-v2-0','2026-11-28T18:37:53.208111+00:00','{"name":"chat-v2-0","created_at":"2026-11-28T18:37:53.208111Z","deployment":"chat","version":2,"index":0,"wanted":true,"failures":0,"starts":1,"address":"unix:/srv/stoker/s/89eb5b2e5d69.sock","devices":[],"device_memory":null,"host":"","launch_digest":"686746133a1e","state":{"phase":"ready","process":"replica-chat-v2-0-1","since":"2026-11-28T18:37:54.410078Z"}}','chat',2,'ready');
INSERT INTO "replica" VALUES('chat-v1-0','2026-11-28T18:37:55.986882+00:00','{"name":"chat-v1-0","created_at":"2026-11-28T18:37:55.986882Z","deployment":"chat","version":1,"index":0,"wanted":true,"failures":0,"starts":1,"address":"unix:/srv/stoker/s/e2e9a02ca722.sock","devices":[],"device_memory":null,"host":"","launch_digest":"686746133a1e","state":{"phase":"ready","process":"replica-chat-v1-0-1","since":"2026-11-28T18:37:57.045454Z"}}','chat',1,'ready');
CREATE TABLE rollout (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	deployment VARCHAR NOT NULL, 
	phase VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "rollout" VALUES('to-two','2026-11-28T18:37:53.132571+00:00','{"name":"to-two","created_at":"2026-11-28T18:37:53.132571Z","spec":{"kind":"rollout","name":"to-two","deployment":"chat","to":"two","steps":[{"type":"shadow","percent":50.0,"min_requests":5,"min_duration":0.0,"max_duration":3600.0,"max_callers":0},{"type":"canary","percent":50.0,"min_requests":5,"min_duration":0.0,"max_duration":3600.0,"max_callers":0}],"guards":[{"metric":"error_rate","limit":0.05,"quantile":0.9,"min_requests":8},{"metric":"ttft","limit":100.0,"quantile":0.9,"min_requests":8}],"targets":[{"header":"","value":"","key":"alice"}],"keep_answers":false,"max_errors_in_a_row":5},"deployment":"chat","from_version":1,"to_version":2,"state":{"phase":"promoted","finished_at":"2026-11-28T18:37:55.452609Z"},"arms":{"stable":{"requests":28,"errors":0,"ttft_p50":0.0025155,"ttft_p90":0.014911800000000001,"inter_token_p50":null,"inter_token_p90":null,"total_p50":0.0025155,"total_p90":0.014911800000000001},"candidate":{"requests":10,"errors":0,"ttft_p50":0.001362,"ttft_p90":0.008824499999999997,"inter_token_p50":null,"inter_token_p90":null,"total_p50":0.001362,"total_p90":0.008824499999999997},"shadow":{"requests":2,"errors":0,"ttft_p50":0.0014724999999999999,"ttft_p90":0.0015160999999999998,"inter_token_p50":null,"inter_token_p90":null,"total_p50":0.0014724999999999999,"total_p90":0.0015160999999999998}},"readings":[{"guard":{"metric":"error_rate","limit":0.05,"quantile":0.9,"min_requests":8},"verdict":{"verdict":"pass","reason":"error rate of v2 is 0.0 %, v1''s 0.0 %: +0.0 points (-19.9 to +46.3); limit +5; 10 and 28 requests"}},{"guard":{"metric":"ttft","limit":100.0,"quantile":0.9,"min_requests":8},"verdict":{"verdict":"pass","reason":"TTFT p90 of v2 is 0.59 times v1''s (8.82 ms and 14.9 ms); limit 100.00; 10 and 28 requests"}}],"candidate_errors":0,"verdict_at":null,"restored_at":null}','chat','promoted');
INSERT INTO "rollout" VALUES('to-one','2026-11-28T18:37:55.960820+00:00','{"name":"to-one","created_at":"2026-11-28T18:37:55.960820Z","spec":{"kind":"rollout","name":"to-one","deployment":"chat","to":"one","steps":[{"type":"canary","percent":50.0,"min_requests":100000,"min_duration":0.0,"max_duration":3600.0,"max_callers":0}],"guards":[{"metric":"error_rate","limit":0.05,"quantile":0.9,"min_requests":8}],"targets":[],"keep_answers":false,"max_errors_in_a_row":5},"deployment":"chat","from_version":2,"to_version":1,"state":{"phase":"stepping","step":0,"since":"2026-11-28T18:37:57.115029Z"},"arms":{"stable":{"requests":145,"errors":0,"ttft_p50":0.001163,"ttft_p90":0.0055358,"inter_token_p50":null,"inter_token_p90":null,"total_p50":0.001163,"total_p90":0.0055358},"candidate":{"requests":124,"errors":0,"ttft_p50":0.0016895,"ttft_p90":0.0066684000000000005,"inter_token_p50":null,"inter_token_p90":null,"total_p50":0.0016895,"total_p90":0.0066684000000000005}},"readings":[{"guard":{"metric":"error_rate","limit":0.05,"quantile":0.9,"min_requests":8},"verdict":{"verdict":"pass","reason":"error rate of v1 is 0.0 %, v2''s 0.0 %: +0.0 points (-4.0 to +4.6); limit +5; 124 and 145 requests"}}],"candidate_errors":0,"verdict_at":null,"restored_at":null}','chat','stepping');
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
INSERT INTO "run" VALUES('tune-1','2026-11-28T18:37:52.807904+00:00','{"name":"tune-1","created_at":"2026-11-28T18:37:52.807904Z","job":"tune","number":1,"spec":{"kind":"job","name":"tune","command":["/opt/stoker/bin/python","-c","print(1)"],"code":null,"python":null,"dataset":null,"base":null,"params":{},"env":{},"timeout":null,"retries":0,"backoff":10.0,"checkpoint":null,"devices":0,"device_memory":null,"limits":{"memory":null,"processes":null,"cpu_weight":null},"registers":null},"params":{},"trigger":"manual","attempt":1,"code_digest":null,"code_commit":null,"dataset_version":null,"dataset_digest":null,"base_version":null,"environment":{"python":"3.11.7","platform":"Linux-6.18.44-fc-v595-x86_64-with-glibc2.36","packages":["alembic==1.20.1","annotated-doc==0.0.7","annotated-types==0.8.0","anthropic==2.13.0","anyio==4.16.0","APScheduler==3.11.3","ast_serialize==0.13.1","build==1.6.1","certifi==2026.10.19.post1","charset-normalizer==3.5.2","click==8.5.1","distro==1.9.0","docstring_parser==0.18.0","execnet==2.1.2","fastapi==0.165.0","grimp==3.19","h11==0.16.0","httpcore2==2.16.2","httpcore==1.0.9","httptools==0.9.0","httpx-sse==0.4.3","httpx2==2.16.2","httpx==0.28.1","hypothesis==6.170.15","idna==3.20","import-linter==2.16","iniconfig==2.3.1","Jinja2==3.1.6","jiter==0.19.0","jsonpatch==1.48","jsonpointer==3.12","langchain-core==1.8.3","langchain-openai==1.7.4","langchain-protocol==0.0.20","langsmith==0.15.1","librt==0.16.0","linkify-it-py==2.2.0","Mako==1.4.3","markdown-it-py==4.3.0","MarkupSafe==3.0.4","mdit-py-plugins==0.7.0","mdurl==0.1.2","msgspec==0.22.0","mypy==2.4.1","mypy_extensions==1.2.0","nvidia-ml-py==13.615.71","openai==3.54.0","opentelemetry-api==1.45.2","orjson==3.13.0","packaging==26.3","pathspec==1.1.1","pip==23.2.1","platformdirs==4.14.7","pluggy==1.7.0","psutil==7.2.2","pydantic==2.14.3","pydantic_core==2.50.4","Pygments==2.21.0","pyproject_hooks==1.3.3","pytest-textual-snapshot==1.1.0","pytest-timeout==2.4.0","pytest-xdist==3.8.0","pytest==8.4.2","PyYAML==6.0.4","regex==2026.11.19","requests-toolbelt==1.0.0","requests==2.34.2","rich==15.0.0","ruamel.yaml==0.19.1","ruff==0.17.6","setuptools==84.2.1","shellingham==1.5.4","sniffio==1.3.1","sortedcontainers==2.4.0","SQLAlchemy==2.1.9","sqlmodel==0.0.50","starlette==1.10.0","stoker==0.1.0","syrupy==4.8.0","tenacity==9.2.1","textual==8.2.8","tiktoken==0.14.0","truststore==0.10.5","typer==0.29.2","types-psutil==7.2.2.20261111","typing-inspection==0.4.5","typing_extensions==4.16.0","tzlocal==5.4.5","urllib3==2.8.0","uuid_utils==0.19.0","uvicorn==0.54.0","uvloop==0.23.0","watchdog==7.1.0","websockets==17.4","xxhash==4.1.0","zstandard==0.25.0"],"packages_digest":"84154cd13290c3033993094b6acc671fe13e4b62dc9a9a92be2d6f2bef6a3fef","executable":"/opt/stoker/bin/python"},"devices":[],"checkpoint":null,"state":{"phase":"succeeded","started_at":"2026-11-28T18:37:52.865746Z","finished_at":"2026-11-28T18:37:53.021004Z","registered":null},"folder":"/srv/stoker/runs/tune-1"}','tune',1,'succeeded','manual');
CREATE TABLE schedule (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "schedule" VALUES('nightly','2026-11-28T18:37:52.196418+00:00','{"name":"nightly","created_at":"2026-11-28T18:37:52.196418Z","spec":{"kind":"schedule","name":"nightly","job":"tune","cron":"0 3 * * *","interval":null,"date":null,"timezone":"Europe/Berlin","misfire":"once","params":{},"paused":false},"spec_set_at":"2026-11-28T18:37:52.196426Z","last_fired_at":null,"next_fire_at":"2026-11-29T03:00:00+01:00"}');
CREATE TABLE version (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	model VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "version" VALUES('m@1','2026-11-28T18:37:50.614810+00:00','{"name":"m@1","created_at":"2026-11-28T18:37:50.614810Z","model":"m","number":1,"digest":"388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07","files":1,"bytes":20,"folder":"/srv/stoker/content/trees/388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07","lineage":{"source":"/srv/stoker/weights-one","run":null,"code_commit":null,"code_digest":null,"dataset_version":null,"dataset_digest":null,"base_version":null,"params":{},"metrics":{},"environment":{}}}','m',1,'388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07');
INSERT INTO "version" VALUES('m@2','2026-11-28T18:37:50.758537+00:00','{"name":"m@2","created_at":"2026-11-28T18:37:50.758537Z","model":"m","number":2,"digest":"ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6","files":1,"bytes":20,"folder":"/srv/stoker/content/trees/ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6","lineage":{"source":"/srv/stoker/weights-two","run":null,"code_commit":null,"code_digest":null,"dataset_version":null,"dataset_digest":null,"base_version":null,"params":{},"metrics":{},"environment":{}}}','m',2,'ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6');
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
INSERT INTO "sqlite_sequence" VALUES('event',40);
COMMIT;

BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
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
INSERT INTO "deployment" VALUES('chat','2026-11-25T07:28:51.871647+00:00','{"name":"chat","created_at":"2026-11-25T07:28:51.871647Z","spec":{"kind":"deployment","name":"chat","model":"m","version":1,"engine":{"type":"command","command":["/opt/stoker/bin/python","/opt/stoker/tests/system/model_server.py","{socket}","{model}","{name}"],"env":{},"ready_path":"/v1/completions","health_path":"/health"},"replicas":1,"devices":0,"device_memory":null,"start_timeout":600.0,"drain_timeout":90.0,"stall_timeout":45.0,"restart":{"policy":"on-failure","backoff":2.0,"backoff_cap":60.0,"limit":3,"healthy_after":60.0},"limits":{"memory":4294967296,"processes":200,"cpu_weight":null}},"version":2,"previous_version":1,"deleting":false,"phase":"ready","message":"","rollout":"back"}');
CREATE TABLE event (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	time VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	reason VARCHAR NOT NULL, 
	message VARCHAR NOT NULL, 
	data JSON NOT NULL
);
INSERT INTO "event" VALUES(1,'2026-11-25T07:28:51.749578+00:00','model','m','ModelCreated','model m was created.','{}');
INSERT INTO "event" VALUES(2,'2026-11-25T07:28:51.803547+00:00','version','m@1','VersionRegistered','m@1, from /srv/stoker/weights-one.','{"digest": "388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07"}');
INSERT INTO "event" VALUES(3,'2026-11-25T07:28:51.804394+00:00','model','m','AliasMoved','m@one is version 1 now.','{"before": null, "after": 1}');
INSERT INTO "event" VALUES(4,'2026-11-25T07:28:51.849182+00:00','version','m@2','VersionRegistered','m@2, from /srv/stoker/weights-two.','{"digest": "ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6"}');
INSERT INTO "event" VALUES(5,'2026-11-25T07:28:51.852971+00:00','model','m','AliasMoved','m@two is version 2 now.','{"before": null, "after": 2}');
INSERT INTO "event" VALUES(6,'2026-11-25T07:28:51.873094+00:00','deployment','chat','DeploymentCreated','deployment chat of m@1 was created.','{"phase": "starting"}');
INSERT INTO "event" VALUES(7,'2026-11-25T07:28:51.895324+00:00','replica','chat-v1-0','ReplicaCreated','chat-v1-0 is to serve version 1.','{"phase": "pending"}');
INSERT INTO "event" VALUES(8,'2026-11-25T07:28:51.903998+00:00','replica','chat-v1-0','ReplicaStarting','chat-v1-0 starts (start number 1).','{"phase": "starting"}');
INSERT INTO "event" VALUES(9,'2026-11-25T07:28:51.907894+00:00','gateway','gateway','GatewayReady','the gateway serves http://127.0.0.1:38795/v1.','{"phase": "ready"}');
INSERT INTO "event" VALUES(10,'2026-11-25T07:28:52.421206+00:00','replica','chat-v1-0','ReplicaReady','chat-v1-0 answered after 0.5 s.','{"phase": "ready"}');
INSERT INTO "event" VALUES(11,'2026-11-25T07:28:52.433429+00:00','deployment','chat','DeploymentReady','deployment chat is ready.','{"phase": "ready"}');
INSERT INTO "event" VALUES(12,'2026-11-25T07:28:52.465435+00:00','job','tune','JobCreated','job tune was created.','{}');
INSERT INTO "event" VALUES(13,'2026-11-25T07:28:52.468939+00:00','schedule','nightly','ScheduleCreated','schedule nightly was created.','{}');
INSERT INTO "event" VALUES(14,'2026-11-25T07:28:52.473519+00:00','schedule','nightly','ScheduleSet','nightly fires next at 2026-11-26 03:00:00+01:00.','{}');
INSERT INTO "event" VALUES(15,'2026-11-25T07:28:52.663466+00:00','run','tune-1','RunQueued','tune-1 waits for its turn (manual).','{"phase": "queued"}');
INSERT INTO "event" VALUES(16,'2026-11-25T07:28:52.671116+00:00','run','tune-1','RunStarted','tune-1 started (attempt 1).','{"attempt": 1, "phase": "running"}');
INSERT INTO "event" VALUES(17,'2026-11-25T07:28:52.759850+00:00','run','tune-1','RunSucceeded','tune-1 succeeded.','{"phase": "succeeded"}');
INSERT INTO "event" VALUES(18,'2026-11-25T07:28:52.784420+00:00','rollout','to-two','RolloutStarted','to-two: chat moves from version 1 to 2.','{"phase": "preparing"}');
INSERT INTO "event" VALUES(19,'2026-11-25T07:28:52.811218+00:00','replica','chat-v2-0','ReplicaCreated','chat-v2-0 is to serve version 2.','{"phase": "pending"}');
INSERT INTO "event" VALUES(20,'2026-11-25T07:28:52.821440+00:00','replica','chat-v2-0','ReplicaStarting','chat-v2-0 starts (start number 1).','{"phase": "starting"}');
INSERT INTO "event" VALUES(21,'2026-11-25T07:28:53.414169+00:00','replica','chat-v2-0','ReplicaReady','chat-v2-0 answered after 0.6 s.','{"phase": "ready"}');
INSERT INTO "event" VALUES(22,'2026-11-25T07:28:53.453986+00:00','rollout','to-two','RolloutStepped','to-two: step 1 of 2: shadow 50 % to version 2.','{"verdict": null, "evidence": [], "phase": "stepping"}');
INSERT INTO "event" VALUES(23,'2026-11-25T07:28:53.506385+00:00','rollout','to-two','GuardsRead','to-two: error_rate starved.','{"verdicts": ["starved"], "reasons": ["too few requests to judge the error rate: 4 of v2 and 10 of v1; needed are 8 of either"], "phase": "stepping"}');
INSERT INTO "event" VALUES(24,'2026-11-25T07:28:53.549317+00:00','rollout','to-two','RolloutStepped','to-two: step 2 of 2: canary 50 % to version 2.','{"verdict": "pass", "evidence": ["error_rate: pass: error rate of v2 is 0.0 %, v1''s 0.0 %: +0.0 points (-19.9 to +34.8); limit +50; 13 and 25 requests"], "phase": "stepping"}');
INSERT INTO "event" VALUES(25,'2026-11-25T07:28:53.589864+00:00','rollout','to-two','GuardsRead','to-two: error_rate starved.','{"verdicts": ["starved"], "reasons": ["no request of this step was answered by the candidate: no error rate to judge"], "phase": "stepping"}');
INSERT INTO "event" VALUES(26,'2026-11-25T07:28:53.666965+00:00','rollout','to-two','RolloutPromoting','to-two: every guard held in every step; all traffic goes to version 2.','{"verdict": "pass", "evidence": ["error_rate: pass: error rate of v2 is 0.0 %, v1''s 0.0 %: +0.0 points (-22.1 to +36.8); limit +50; 12 and 22 requests"], "phase": "promoting"}');
INSERT INTO "event" VALUES(27,'2026-11-25T07:28:53.692947+00:00','deployment','chat','DeploymentServes','chat serves version 2.','{"phase": "ready"}');
INSERT INTO "event" VALUES(28,'2026-11-25T07:28:53.693803+00:00','rollout','to-two','RolloutPromoted','to-two: version 2 is promoted.','{"verdict": null, "evidence": ["error_rate: pass: error rate of v2 is 0.0 %, v1''s 0.0 %: +0.0 points (-22.1 to +36.8); limit +50; 12 and 22 requests"], "phase": "promoted"}');
INSERT INTO "event" VALUES(29,'2026-11-25T07:28:53.701251+00:00','replica','chat-v1-0','ReplicaRetired','chat-v1-0 is no longer wanted.','{"phase": "ready"}');
INSERT INTO "event" VALUES(30,'2026-11-25T07:28:53.707832+00:00','replica','chat-v1-0','ReplicaDraining','chat-v1-0 drains.','{"phase": "draining"}');
INSERT INTO "event" VALUES(31,'2026-11-25T07:28:53.736717+00:00','rollout','back','RolloutStarted','back: chat moves from version 2 to 1.','{"phase": "preparing"}');
INSERT INTO "event" VALUES(32,'2026-11-25T07:28:53.757673+00:00','replica','chat-v1-0','ReplicaStopping','chat-v1-0 stops; 0 in flight.','{"phase": "stopping"}');
INSERT INTO "event" VALUES(33,'2026-11-25T07:28:53.790705+00:00','replica','chat-v1-1','ReplicaCreated','chat-v1-1 is to serve version 1.','{"phase": "pending"}');
INSERT INTO "event" VALUES(34,'2026-11-25T07:28:53.817462+00:00','replica','chat-v1-1','ReplicaStarting','chat-v1-1 starts (start number 1).','{"phase": "starting"}');
INSERT INTO "event" VALUES(35,'2026-11-25T07:28:53.907310+00:00','replica','chat-v1-0','ReplicaStopped','chat-v1-0 is gone.','{}');
INSERT INTO "event" VALUES(36,'2026-11-25T07:28:54.442072+00:00','replica','chat-v1-1','ReplicaReady','chat-v1-1 answered after 0.6 s.','{"phase": "ready"}');
INSERT INTO "event" VALUES(37,'2026-11-25T07:28:54.456778+00:00','rollout','back','RolloutStepped','back: step 1 of 1: canary 5 % to version 1.','{"verdict": null, "evidence": [], "phase": "stepping"}');
INSERT INTO "event" VALUES(38,'2026-11-25T07:28:54.491946+00:00','rollout','back','GuardsRead','back: error_rate starved, ttft starved, total starved.','{"verdicts": ["starved", "starved", "starved"], "reasons": ["no request of this step was answered by the candidate: no error rate to judge", "no request of this step was answered by the candidate: no TTFT to judge", "no request of this step was answered by the candidate: no total to judge"], "phase": "stepping"}');
CREATE TABLE job (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "job" VALUES('tune','2026-11-25T07:28:52.463646+00:00','{"name":"tune","created_at":"2026-11-25T07:28:52.463646Z","spec":{"kind":"job","name":"tune","command":["{python}","train.py"],"code":"/srv/stoker/code","python":null,"dataset":null,"base":null,"params":{},"env":{},"timeout":null,"retries":2,"backoff":10.0,"checkpoint":"step-*.pt","devices":0,"device_memory":null,"limits":{"memory":null,"processes":null,"cpu_weight":50},"registers":null},"runs":1}');
CREATE TABLE model (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "model" VALUES('m','2026-11-25T07:28:51.748017+00:00','{"name":"m","created_at":"2026-11-25T07:28:51.748017Z","spec":{"kind":"model","name":"m","description":"","tags":{}},"latest":2,"aliases":{"one":1,"two":2}}');
CREATE TABLE replica (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	deployment VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	phase VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "replica" VALUES('chat-v2-0','2026-11-25T07:28:52.810237+00:00','{"name":"chat-v2-0","created_at":"2026-11-25T07:28:52.810237Z","deployment":"chat","version":2,"index":0,"wanted":true,"failures":0,"starts":1,"address":"unix:/srv/stoker/s/89eb5b2e5d69.sock","devices":[],"device_memory":null,"launch_digest":"e20ab24effba","state":{"phase":"ready","process":"replica-chat-v2-0-1","since":"2026-11-25T07:28:53.412136Z"}}','chat',2,'ready');
INSERT INTO "replica" VALUES('chat-v1-1','2026-11-25T07:28:53.790033+00:00','{"name":"chat-v1-1","created_at":"2026-11-25T07:28:53.790033Z","deployment":"chat","version":1,"index":1,"wanted":true,"failures":0,"starts":1,"address":"unix:/srv/stoker/s/181f4902db68.sock","devices":[],"device_memory":null,"launch_digest":"e20ab24effba","state":{"phase":"ready","process":"replica-chat-v1-1-1","since":"2026-11-25T07:28:54.440942Z"}}','chat',1,'ready');
CREATE TABLE rollout (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	deployment VARCHAR NOT NULL, 
	phase VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "rollout" VALUES('to-two','2026-11-25T07:28:52.782480+00:00','{"name":"to-two","created_at":"2026-11-25T07:28:52.782480Z","spec":{"kind":"rollout","name":"to-two","deployment":"chat","to":"two","steps":[{"type":"shadow","percent":50.0,"min_requests":5,"min_duration":0.0,"max_duration":3600.0},{"type":"canary","percent":50.0,"min_requests":10,"min_duration":0.0,"max_duration":3600.0}],"guards":[{"metric":"error_rate","limit":0.5,"quantile":0.9,"min_requests":8}],"max_errors_in_a_row":5},"deployment":"chat","from_version":1,"to_version":2,"state":{"phase":"promoted","finished_at":"2026-11-25T07:28:53.688356Z"},"arms":{"stable":{"requests":22,"errors":0,"ttft_p50":0.000584,"ttft_p90":0.0011265000000000001,"inter_token_p50":null,"inter_token_p90":null,"total_p50":0.000584,"total_p90":0.0011265000000000001},"candidate":{"requests":12,"errors":0,"ttft_p50":0.0009854999999999998,"ttft_p90":0.0015681000000000002,"inter_token_p50":null,"inter_token_p90":null,"total_p50":0.0009854999999999998,"total_p90":0.0015681000000000002},"shadow":{"requests":6,"errors":0,"ttft_p50":0.00068,"ttft_p90":0.000904,"inter_token_p50":null,"inter_token_p90":null,"total_p50":0.00068,"total_p90":0.000904}},"readings":[{"guard":{"metric":"error_rate","limit":0.5,"quantile":0.9,"min_requests":8},"verdict":{"verdict":"pass","reason":"error rate of v2 is 0.0 %, v1''s 0.0 %: +0.0 points (-22.1 to +36.8); limit +50; 12 and 22 requests"}}],"candidate_errors":0,"verdict_at":null,"restored_at":null}','chat','promoted');
INSERT INTO "rollout" VALUES('back','2026-11-25T07:28:53.731564+00:00','{"name":"back","created_at":"2026-11-25T07:28:53.731564Z","spec":{"kind":"rollout","name":"back","deployment":"chat","to":"one","steps":[{"type":"canary","percent":5.0,"min_requests":100000,"min_duration":0.0,"max_duration":3600.0}],"guards":[{"metric":"error_rate","limit":0.02,"quantile":0.9,"min_requests":8},{"metric":"ttft","limit":2.0,"quantile":0.9,"min_requests":8},{"metric":"total","limit":2.0,"quantile":0.9,"min_requests":8}],"max_errors_in_a_row":5},"deployment":"chat","from_version":2,"to_version":1,"state":{"phase":"stepping","step":0,"since":"2026-11-25T07:28:54.451442Z"},"arms":{"stable":{"requests":4,"errors":0,"ttft_p50":0.006196999999999999,"ttft_p90":0.0066381,"inter_token_p50":null,"inter_token_p90":null,"total_p50":0.006196999999999999,"total_p90":0.0066381}},"readings":[{"guard":{"metric":"error_rate","limit":0.02,"quantile":0.9,"min_requests":8},"verdict":{"verdict":"starved","reason":"no request of this step was answered by the candidate: no error rate to judge"}},{"guard":{"metric":"ttft","limit":2.0,"quantile":0.9,"min_requests":8},"verdict":{"verdict":"starved","reason":"no request of this step was answered by the candidate: no TTFT to judge"}},{"guard":{"metric":"total","limit":2.0,"quantile":0.9,"min_requests":8},"verdict":{"verdict":"starved","reason":"no request of this step was answered by the candidate: no total to judge"}}],"candidate_errors":0,"verdict_at":null,"restored_at":null}','chat','stepping');
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
INSERT INTO "run" VALUES('tune-1','2026-11-25T07:28:52.660449+00:00','{"name":"tune-1","created_at":"2026-11-25T07:28:52.660449Z","job":"tune","number":1,"spec":{"kind":"job","name":"tune","command":["{python}","train.py"],"code":"/srv/stoker/code","python":null,"dataset":null,"base":null,"params":{},"env":{},"timeout":null,"retries":2,"backoff":10.0,"checkpoint":"step-*.pt","devices":0,"device_memory":null,"limits":{"memory":null,"processes":null,"cpu_weight":50},"registers":null},"params":{},"trigger":"manual","attempt":1,"code_digest":"85cec9c1c721617dc501a7656dfb9d7d001560e611dd34c82f5162c57c41f488","code_commit":null,"dataset_version":null,"dataset_digest":null,"base_version":null,"environment":{"python":"3.11.7","platform":"Linux-6.1.0-x86_64-with-glibc2.36","packages":["stoker==0.1.0"],"packages_digest":"84154cd13290c3033993094b6acc671fe13e4b62dc9a9a92be2d6f2bef6a3fef","executable":"/opt/stoker/bin/python"},"devices":[],"checkpoint":null,"state":{"phase":"succeeded","started_at":"2026-11-25T07:28:52.667708Z","finished_at":"2026-11-25T07:28:52.758197Z","registered":null},"folder":"/srv/stoker/runs/tune-1"}','tune',1,'succeeded','manual');
CREATE TABLE schedule (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "schedule" VALUES('nightly','2026-11-25T07:28:52.467927+00:00','{"name":"nightly","created_at":"2026-11-25T07:28:52.467927Z","spec":{"kind":"schedule","name":"nightly","job":"tune","cron":"0 3 * * *","interval":null,"date":null,"timezone":"Europe/Berlin","misfire":"once","params":{},"paused":false},"spec_set_at":"2026-11-25T07:28:52.467934Z","last_fired_at":null,"next_fire_at":"2026-11-26T03:00:00+01:00"}');
CREATE TABLE version (
	name VARCHAR NOT NULL, 
	created_at VARCHAR NOT NULL, 
	document VARCHAR NOT NULL, 
	model VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "version" VALUES('m@1','2026-11-25T07:28:51.800462+00:00','{"name":"m@1","created_at":"2026-11-25T07:28:51.800462Z","model":"m","number":1,"digest":"388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07","files":1,"bytes":20,"folder":"/srv/stoker/content/trees/388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07","lineage":{"source":"/srv/stoker/weights-one","run":null,"code_commit":null,"code_digest":null,"dataset_version":null,"dataset_digest":null,"base_version":null,"params":{},"metrics":{},"environment":{}}}','m',1,'388da55fad0eb3ee77adca097280bf90957a4f0b8fe4c84857e1d51fb8925b07');
INSERT INTO "version" VALUES('m@2','2026-11-25T07:28:51.847521+00:00','{"name":"m@2","created_at":"2026-11-25T07:28:51.847521Z","model":"m","number":2,"digest":"ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6","files":1,"bytes":20,"folder":"/srv/stoker/content/trees/ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6","lineage":{"source":"/srv/stoker/weights-two","run":null,"code_commit":null,"code_digest":null,"dataset_version":null,"dataset_digest":null,"base_version":null,"params":{},"metrics":{},"environment":{}}}','m',2,'ccec43440cd8546067960023e686affd072f749ae74689ec26e74be8109c0bd6');
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
INSERT INTO "sqlite_sequence" VALUES('event',38);
COMMIT;

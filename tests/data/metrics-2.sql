PRAGMA user_version=2;
BEGIN TRANSACTION;
CREATE TABLE epoch (
	epoch VARCHAR NOT NULL, 
	last_seq INTEGER NOT NULL, 
	last_pair INTEGER NOT NULL, 
	updated_ms INTEGER NOT NULL, 
	PRIMARY KEY (epoch)
);
INSERT INTO "epoch" VALUES('e',2,2,1795892307781);
CREATE TABLE pair (
	id INTEGER NOT NULL, 
	epoch VARCHAR NOT NULL, 
	seq INTEGER NOT NULL, 
	time_ms INTEGER NOT NULL, 
	size_bytes INTEGER NOT NULL, 
	deployment VARCHAR NOT NULL, 
	rollout VARCHAR NOT NULL, 
	path VARCHAR NOT NULL, 
	caller VARCHAR NOT NULL, 
	stable VARCHAR NOT NULL, 
	shadow VARCHAR NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (epoch, seq)
);
INSERT INTO "pair" VALUES(1,'e',1,1000000,645,'chat','chat-2','/v1/completions','0123456789abcdef','{"version": 1, "status": 200, "is_error": false, "finish_reason": "stop", "ttft_seconds": 0.25, "total_seconds": 1.5, "completion_tokens": 3, "text": "Héllo ✓", "is_cut": false}','{"version": 2, "status": 0, "is_error": true, "finish_reason": "", "ttft_seconds": null, "total_seconds": 2.5, "completion_tokens": null, "text": "", "is_cut": true}');
INSERT INTO "pair" VALUES(2,'e',2,1001250,648,'chat','chat-2','/v1/completions','0123456789abcdef','{"version": 1, "status": 200, "is_error": false, "finish_reason": "stop", "ttft_seconds": 0.25, "total_seconds": 1.5, "completion_tokens": 3, "text": "it''s ''quoted''", "is_cut": false}','{"version": 2, "status": 0, "is_error": true, "finish_reason": "", "ttft_seconds": null, "total_seconds": 2.5, "completion_tokens": null, "text": "", "is_cut": true}');
CREATE TABLE request (
	source_id INTEGER NOT NULL, 
	ended_ms INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	started_us INTEGER NOT NULL, 
	status INTEGER NOT NULL, 
	is_error BOOLEAN NOT NULL, 
	is_stream BOOLEAN NOT NULL, 
	client_gone BOOLEAN NOT NULL, 
	fell_back BOOLEAN NOT NULL, 
	ttft_us INTEGER, 
	inter_token_us INTEGER, 
	total_us INTEGER NOT NULL, 
	prompt_tokens INTEGER, 
	completion_tokens INTEGER, 
	table_version INTEGER NOT NULL, 
	max_gap_us INTEGER, 
	queued_us INTEGER NOT NULL, 
	request_bytes INTEGER NOT NULL, 
	response_bytes INTEGER NOT NULL, 
	finish_reason VARCHAR NOT NULL, 
	caller VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	trace VARCHAR NOT NULL, 
	PRIMARY KEY (source_id, ended_ms, seq), 
	FOREIGN KEY(source_id) REFERENCES source (id)
)
 WITHOUT ROWID

;
INSERT INTO "request" VALUES(1,1001500,1,1000000000,200,0,1,0,0,250000,15625,1500000,7,11,3,62500,125000,120,4096,'stop','0123456789abcdef','team','4bf92f3577b34da6a3ce929d0e0e4736');
INSERT INTO "request" VALUES(1,1002500,2,1001000000,500,1,1,0,0,250000,15625,1500000,7,11,3,62500,125000,120,4096,'stop','0123456789abcdef','team','4bf92f3577b34da6a3ce929d0e0e4736');
CREATE TABLE sample (
	series_id INTEGER NOT NULL, 
	time_ms INTEGER NOT NULL, 
	value FLOAT NOT NULL, 
	PRIMARY KEY (series_id, time_ms), 
	FOREIGN KEY(series_id) REFERENCES series (id)
)
 WITHOUT ROWID

;
INSERT INTO "sample" VALUES(1,1000,1.0);
INSERT INTO "sample" VALUES(1,2000,2.0);
CREATE TABLE series (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	labels VARCHAR NOT NULL, 
	unit VARCHAR NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name, labels, unit)
);
INSERT INTO "series" VALUES(1,'host.a','{}','');
CREATE TABLE source (
	id INTEGER NOT NULL, 
	deployment VARCHAR NOT NULL, 
	arm VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	epoch VARCHAR NOT NULL, 
	address VARCHAR NOT NULL, 
	path VARCHAR NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (deployment, arm, version, epoch, address, path)
);
INSERT INTO "source" VALUES(1,'chat','stable',1,'e','unix:/run/s/a','/v1/chat/completions');
CREATE INDEX pair_of_rollout ON pair (rollout, time_ms);
CREATE INDEX pair_by_time ON pair (time_ms, size_bytes);
COMMIT;

//! What raises the feature level in use.

use flota_api::LEVEL_OF_USER_NAMESPACES;

use super::*;

/// The ways in which a spec comes into the store.
const WAYS: [&str; 3] = ["create", "update", "stack"];

/// Sets a spec whose tasks have ids of their own.
async fn set(control: &Control<Alone>, way: &str) -> Result<(), ControlError> {
    let own = |name: &str| ServiceSpec { user_namespace: true, ..spec(name) };
    match way {
        "create" => control.create_service(None, own("new"), Never).await.map(drop),
        "update" => control.update_service(None, "web", None, &own("web"), Never, false).await.map(drop),
        _ => {
            let services = vec![spec("shop_a"), own("shop_b")];
            let stack = StackSpec { name: "shop".into(), services, ..StackSpec::default() };
            control.deploy_stack(None, &stack, &[], Keep, Never).await.map(drop)
        }
    }
}

#[tokio::test]
async fn a_service_with_ids_of_its_own_raises_the_level_once_every_manager_knows_it() {
    for way in WAYS {
        let control = cluster().await;
        let level = || control.store.view().cluster().expect("it is there").feature_level;
        let refused = set(&control, way).await.expect_err("no manager knows it").to_string();
        assert!(refused.contains("is too old for this: upgrade it first"), "{way}: {refused}");
        assert_eq!(level(), 0, "{way}");
        for id in ["n1", "n2"] {
            let mut manager = control.store.view().node(id).expect("it is there").as_ref().clone();
            manager.description.feature_level = LEVEL_OF_USER_NAMESPACES;
            control.replace(manager).await;
        }
        set(&control, way).await.unwrap_or_else(|error| panic!("{way}: {error}"));
        assert_eq!(level(), LEVEL_OF_USER_NAMESPACES, "{way}");
    }
}
